package table

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Reading of Berkeley DB files, hash and btree, as the makemap of OpenSMTPD
// writes them. Pages are walked in the order of the file: every entry lies in
// some leaf, so neither hashing nor descending is needed. Every offset is
// checked against its page, for the file is input.

// Layout of a page: offsets of the fields that matter here.
const (
	bdbMagicAt   = 12 // in the first page
	bdbSizeAt    = 20 // in the first page: size of a page
	bdbCryptAt   = 24 // in the first page: not zero when encrypted
	bdbLastAt    = 32 // in the first page: the last page
	bdbFlagsAt   = 48 // in the first page: what is special about the file
	bdbNextAt    = 16
	bdbCountAt   = 20 // items of a page
	bdbFreeAt    = 22 // overflow pages: octets in this page
	bdbTypeAt    = 25
	bdbItemsAt   = 26 // offsets of items; overflow pages: their octets
	bdbHashMagic = 0x061561
	bdbTreeMagic = 0x053162
)

// Flags of the first page: several values for one key, or what is no map at all
// (numbered records, a folder of maps, compressed leaves).
const (
	bdbTreeDup   = 0x01 | 0x40
	bdbTreeOther = 0x02 | 0x08 | 0x20 | 0x80
	bdbHashDup   = 0x01 | 0x04
	bdbHashOther = 0x02
)

// Types of pages and items.
const (
	bdbPageHashUnsorted = 2
	bdbPageLeaf         = 5
	bdbPageOverflow     = 7
	bdbPageDuplicates   = 12
	bdbPageHash         = 13

	bdbItemInline   = 1
	bdbItemOverflow = 3
	bdbItemDeleted  = 0x80
)

// Bounds of a Berkeley file.
const (
	bdbMinPage = 512       // what the format allows
	bdbMaxPage = 64 << 10  // what the format allows
	bdbMaxFile = 256 << 20 // ours: it is read into memory
)

var (
	errEncrypted  = errors.New("the Berkeley DB file is encrypted")
	errDuplicates = errors.New("the Berkeley DB file holds several values for one key")
	errHuge       = errors.New("the Berkeley DB file is larger than 256 MB")
)

// berkeleyOrder tells a Berkeley file by its first octets, with its byte order.
func berkeleyOrder(head []byte) (order binary.ByteOrder, magic uint32, ok bool) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch magic := order.Uint32(head[bdbMagicAt:]); magic {
		case bdbHashMagic, bdbTreeMagic:
			return order, magic, true
		}
	}
	return nil, 0, false
}

func readBerkeley(f *os.File, yield func(key, value string) error) error {
	data, err := io.ReadAll(io.LimitReader(f, bdbMaxFile+1))
	if err != nil {
		return err
	}
	if len(data) > bdbMaxFile {
		return errHuge
	}
	return walkBerkeley(data, yield)
}

// walkBerkeley calls yield for each entry of the file's octets.
func walkBerkeley(data []byte, yield func(key, value string) error) error {
	if len(data) < bdbMinPage {
		return errDamaged
	}
	order, magic, ok := berkeleyOrder(data)
	if !ok {
		return errNotMap
	}
	dup, other := uint32(bdbHashDup), uint32(bdbHashOther)
	if magic == bdbTreeMagic {
		dup, other = bdbTreeDup, bdbTreeOther
	}
	switch flags := order.Uint32(data[bdbFlagsAt:]); {
	case flags&other != 0:
		return errNotMap
	case flags&dup != 0:
		return errDuplicates
	}
	if data[bdbCryptAt] != 0 {
		return errEncrypted
	}
	size := int(order.Uint32(data[bdbSizeAt:]))
	if size < bdbMinPage || size > bdbMaxPage || size&(size-1) != 0 {
		return errDamaged
	}
	b := &berkeley{order: order, size: size, pages: len(data) / size, data: data}
	if int64(order.Uint32(data[bdbLastAt:])) >= int64(b.pages) {
		return errDamaged // its end is missing
	}
	for n := 1; n < b.pages; n++ {
		if err := b.leaf(b.page(n), yield); err != nil {
			return fmt.Errorf("page %d: %w", n, err)
		}
	}
	return nil
}

type berkeley struct {
	order binary.ByteOrder
	size  int
	pages int
	data  []byte
	total int // octets of entries so far; never more than the file has
}

func (b *berkeley) page(n int) []byte { return b.data[n*b.size : (n+1)*b.size] }

func (b *berkeley) u16(p []byte, at int) int { return int(b.order.Uint16(p[at:])) }

// leaf yields the entries of a page, if it is one that holds entries.
func (b *berkeley) leaf(p []byte, yield func(key, value string) error) error {
	var item func(p []byte, i int) ([]byte, bool, error)
	switch p[bdbTypeAt] {
	case bdbPageHash, bdbPageHashUnsorted:
		item = b.hashItem
	case bdbPageLeaf:
		item = b.treeItem
	case bdbPageDuplicates:
		return errDuplicates
	default:
		return nil
	}
	n := b.u16(p, bdbCountAt)
	if bdbItemsAt+2*n > b.size || n%2 != 0 {
		return errDamaged
	}
	for i := 0; i < n; i += 2 {
		key, gone, err := item(p, i)
		if err != nil {
			return err
		}
		value, valueGone, err := item(p, i+1)
		if err != nil {
			return err
		}
		if b.total += len(key) + len(value); b.total > len(b.data) {
			return errDamaged // items share their octets
		}
		if gone || valueGone {
			continue
		}
		if len(key) > MaxKey || len(value) > MaxValue {
			return errDamaged
		}
		if err := yield(cutNUL(key), cutNUL(value)); err != nil {
			return err
		}
	}
	return nil
}

// cutNUL takes off the NUL with which makemap ends keys and values.
func cutNUL(b []byte) string {
	if n := len(b); n > 0 && b[n-1] == 0 {
		b = b[:n-1]
	}
	return string(b)
}

// hashItem is item i of a hash page: it ends where the item before it begins.
func (b *berkeley) hashItem(p []byte, i int) (data []byte, deleted bool, err error) {
	from, to := b.u16(p, bdbItemsAt+2*i), b.size
	if i > 0 {
		to = b.u16(p, bdbItemsAt+2*(i-1))
	}
	if from < bdbItemsAt || from >= to || to > b.size {
		return nil, false, errDamaged
	}
	it := p[from:to]
	switch it[0] {
	case bdbItemInline:
		return it[1:], false, nil
	case bdbItemOverflow:
		if len(it) < 12 {
			return nil, false, errDamaged
		}
		data, err = b.overflow(b.order.Uint32(it[4:]), b.order.Uint32(it[8:]))
		return data, false, err
	}
	return nil, false, errDuplicates
}

// treeItem is item i of a btree leaf: length, type, octets.
func (b *berkeley) treeItem(p []byte, i int) (data []byte, deleted bool, err error) {
	at := b.u16(p, bdbItemsAt+2*i)
	if at < bdbItemsAt || at+3 > b.size {
		return nil, false, errDamaged
	}
	n, typ := b.u16(p, at), p[at+2]
	switch typ &^ bdbItemDeleted {
	case bdbItemInline:
		if at+3+n > b.size {
			return nil, false, errDamaged
		}
		return p[at+3 : at+3+n], typ&bdbItemDeleted != 0, nil
	case bdbItemOverflow:
		if at+12 > b.size {
			return nil, false, errDamaged
		}
		data, err = b.overflow(b.order.Uint32(p[at+4:]), b.order.Uint32(p[at+8:]))
		return data, typ&bdbItemDeleted != 0, err
	}
	return nil, false, errDuplicates
}

// overflow collects an item that has pages of its own. The chain is never
// longer than the file has pages, nor than its length asks for.
func (b *berkeley) overflow(page, length uint32) ([]byte, error) {
	if length > MaxValue+1 {
		return nil, errDamaged
	}
	var data []byte
	for range b.pages {
		if page == 0 || int64(page) >= int64(b.pages) {
			return nil, errDamaged
		}
		p := b.page(int(page))
		n := b.u16(p, bdbFreeAt)
		if p[bdbTypeAt] != bdbPageOverflow || bdbItemsAt+n > b.size {
			return nil, errDamaged
		}
		data = append(data, p[bdbItemsAt:bdbItemsAt+n]...)
		if len(data) >= int(length) {
			break
		}
		page = b.order.Uint32(p[bdbNextAt:])
	}
	if len(data) != int(length) {
		return nil, errDamaged
	}
	return data, nil
}
