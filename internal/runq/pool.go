package runq

// slabSize is how many nodes are allocated together. Ours: large enough for the
// collector not to notice, small enough for an idle server.
const slabSize = 1024

// pool holds nodes by index, so that links take four octets and no pointer is
// left for the garbage collector to follow. Index 0 is nobody.
type pool struct {
	slabs []*[slabSize]node
	free  uint32 // first of the free nodes, linked by next
	used  uint32 // indexes below have been handed out once
}

func (p *pool) at(i uint32) *node { return &p.slabs[i/slabSize][i%slabSize] }

// get hands out a zeroed node.
func (p *pool) get() uint32 {
	if i := p.free; i != 0 {
		n := p.at(i)
		p.free = n.next
		*n = node{}
		return i
	}
	if p.used == 0 {
		p.used = 1
	}
	if int(p.used/slabSize) == len(p.slabs) {
		p.slabs = append(p.slabs, new([slabSize]node))
	}
	p.used++
	return p.used - 1
}

// put takes a node back.
func (p *pool) put(i uint32) {
	n := p.at(i)
	*n = node{next: p.free}
	p.free = i
}

// large reports whether dropping an empty pool is worth the trouble.
func (p *pool) large() bool { return len(p.slabs) > 16 }

// list is a chain of nodes by next and prev. The zero value is empty.
type list struct {
	head, tail uint32
	n          int
}

func (l *list) push(p *pool, i uint32) {
	n := p.at(i)
	n.next, n.prev = 0, l.tail
	if l.tail != 0 {
		p.at(l.tail).next = i
	} else {
		l.head = i
	}
	l.tail = i
	l.n++
}

func (l *list) remove(p *pool, i uint32) {
	n := p.at(i)
	if n.prev != 0 {
		p.at(n.prev).next = n.next
	} else {
		l.head = n.next
	}
	if n.next != 0 {
		p.at(n.next).prev = n.prev
	} else {
		l.tail = n.prev
	}
	n.next, n.prev = 0, 0
	l.n--
}
