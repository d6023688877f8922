package runq

// heap is a heap of four children per item, the earliest first; what is due at
// the same time comes in the order of the nodes, which is about that of arrival,
// so that the envelopes of a message stay together.
type heap []timer

type timer struct {
	at int64
	i  uint32
}

func (a timer) before(b timer) bool { return a.at < b.at || (a.at == b.at && a.i < b.i) }

// set writes a timer to its place and tells its node.
func (h heap) set(p *pool, place int, t timer) {
	h[place] = t
	p.at(t.i).heap = uint32(place) + 1
}

func (h *heap) push(p *pool, at int64, i uint32) {
	*h = append(*h, timer{})
	h.up(p, len(*h)-1, timer{at, i})
}

// remove takes the node out, if it is there.
func (h *heap) remove(p *pool, i uint32) {
	n := p.at(i)
	if n.heap == 0 {
		return
	}
	place := int(n.heap) - 1
	n.heap = 0
	end := len(*h) - 1
	last := (*h)[end]
	*h = (*h)[:end]
	if place == end {
		return
	}
	if place > 0 && last.before((*h)[(place-1)/4]) {
		h.up(p, place, last)
		return
	}
	h.down(p, place, last)
}

func (h heap) up(p *pool, place int, t timer) {
	for place > 0 {
		parent := (place - 1) / 4
		if !t.before(h[parent]) {
			break
		}
		h.set(p, place, h[parent])
		place = parent
	}
	h.set(p, place, t)
}

func (h heap) down(p *pool, place int, t timer) {
	for {
		first := place*4 + 1
		if first >= len(h) {
			break
		}
		least := first
		for c := first + 1; c < min(first+4, len(h)); c++ {
			if h[c].before(h[least]) {
				least = c
			}
		}
		if !h[least].before(t) {
			break
		}
		h.set(p, place, h[least])
		place = least
	}
	h.set(p, place, t)
}
