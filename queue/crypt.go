package queue

import (
	"bytes"
	"compress/gzip"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"
)

// How a payload is stored, in the first octet of an item and in a record.
const (
	storedPlain  = 0
	storedGzip   = 1 << 0
	storedSealed = 1 << 1
)

// KeySize is the length of a key for sealing, in octets (AES-256).
const KeySize = 32

const (
	nonceSize  = 24
	tagSize    = 16
	minGzip    = 128      // ours: a shorter payload does not shrink
	chunkSize  = 64 << 10 // plain octets in one sealed piece of a file
	lastChunk  = 1 << 31  // set in the length of a file's last piece
	maxPayload = 1 << 28  // ours: what an item unpacks to, in octets
)

var (
	errSum    = errors.New("checksum mismatch")
	errSealed = errors.New("sealed, and there is no key")
	errOpen   = errors.New("does not open with the key")
	errSize   = errors.New("has the wrong size")
	errFlags  = errors.New("stored in an unknown way")
)

// sealer is AES-256-GCM with nonces long enough to be drawn at random for ever:
// the first half of a nonce makes a key of its own (XAES-256-GCM, C2SP). A
// sealer is safe for concurrent use.
type sealer struct {
	block cipher.Block
	k1    [aes.BlockSize]byte
}

func newSealer(key []byte) (*sealer, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("a key has %d octets, not %d", KeySize, len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	s := &sealer{block: block}
	block.Encrypt(s.k1[:], s.k1[:])
	var msb byte
	for i := len(s.k1) - 1; i >= 0; i-- { // the doubling of CMAC (NIST SP 800-38B)
		msb, s.k1[i] = s.k1[i]>>7, s.k1[i]<<1|msb
	}
	s.k1[len(s.k1)-1] ^= msb * 0x87
	return s, nil
}

// derive makes the GCM of one nonce.
func (s *sealer) derive(nonce []byte) (cipher.AEAD, error) {
	var k [2 * aes.BlockSize]byte
	for i := range 2 {
		half := k[i*aes.BlockSize : (i+1)*aes.BlockSize]
		copy(half, []byte{0, byte(i + 1), 'X', 0})
		copy(half[4:], nonce[:12])
		for j := range half {
			half[j] ^= s.k1[j]
		}
		s.block.Encrypt(half, half)
	}
	block, err := aes.NewCipher(k[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// seal appends nonce, sealed plain and tag to b. aad is what the result is
// bound to: it opens nowhere else.
func (s *sealer) seal(b, plain, aad []byte) ([]byte, error) {
	var nonce [nonceSize]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return b, err
	}
	return s.sealWith(b, nonce[:], plain, aad)
}

func (s *sealer) sealWith(b, nonce, plain, aad []byte) ([]byte, error) {
	g, err := s.derive(nonce)
	if err != nil {
		return b, err
	}
	return g.Seal(append(b, nonce...), nonce[12:], plain, aad), nil
}

// open reverses seal.
func (s *sealer) open(box, aad []byte) ([]byte, error) {
	if len(box) < nonceSize+tagSize {
		return nil, errOpen
	}
	g, err := s.derive(box[:nonceSize])
	if err != nil {
		return nil, err
	}
	plain, err := g.Open(nil, box[12:nonceSize], box[nonceSize:], aad)
	if err != nil {
		return nil, errOpen
	}
	return plain, nil
}

// packer makes items of payloads and back: compressed and sealed as the
// configuration wants, with a checksum over the whole that holds without a
// key. The zero value stores plainly. It is safe for concurrent use.
type packer struct {
	seal     *sealer
	compress atomic.Bool
	writers  sync.Pool // of *gzip.Writer: one is some hundred kilobytes
}

// Kinds of items; the checksum covers kind and key, so that no item passes for
// another.
const (
	kindEnvelope = 'e'
	kindMessage  = 'm'
	kindBody     = 'b'
	kindNote     = 'n' // in meta, by name
)

func itemSum(kind byte, key, item []byte) uint32 {
	sum := crc32.Update(0, castagnoli(), []byte{kind})
	sum = crc32.Update(sum, castagnoli(), key)
	return crc32.Update(sum, castagnoli(), item)
}

// pack makes the item: how it is stored, payload, CRC32C.
func (p *packer) pack(kind byte, key, plain []byte) ([]byte, error) {
	how := byte(storedPlain)
	payload := plain
	if p.compress.Load() && len(plain) >= minGzip {
		if z := p.gzipped(plain); len(z) < len(plain) {
			payload, how = z, how|storedGzip
		}
	}
	item := make([]byte, 0, 1+len(payload)+nonceSize+tagSize+4)
	if p.seal != nil {
		how |= storedSealed
		var err error
		if item, err = p.seal.seal(append(item, how), payload, append([]byte{kind, how}, key...)); err != nil {
			return nil, err
		}
	} else {
		item = append(append(item, how), payload...)
	}
	return binary.BigEndian.AppendUint32(item, itemSum(kind, key, item)), nil
}

// unpack checks an item and gives its payload, which may share its memory.
func (p *packer) unpack(kind byte, key, item []byte) ([]byte, error) {
	if len(item) < 5 {
		return nil, errCut
	}
	b, sum := item[:len(item)-4], binary.BigEndian.Uint32(item[len(item)-4:])
	if itemSum(kind, key, b) != sum {
		return nil, errSum
	}
	return p.unpackUnchecked(kind, key, b)
}

// unpackUnchecked is unpack of an item without its checksum.
func (p *packer) unpackUnchecked(kind byte, key, b []byte) ([]byte, error) {
	how, payload := b[0], b[1:]
	if how&^(storedGzip|storedSealed) != 0 {
		return nil, errFlags
	}
	var err error
	if how&storedSealed != 0 {
		if p.seal == nil {
			return nil, errSealed
		}
		if payload, err = p.seal.open(payload, append([]byte{kind, how}, key...)); err != nil {
			return nil, err
		}
	}
	if how&storedGzip != 0 {
		if payload, err = gunzipped(payload); err != nil {
			return nil, err
		}
	}
	return payload, nil
}

func (p *packer) gzip(w io.Writer) *gzip.Writer {
	z, _ := p.writers.Get().(*gzip.Writer)
	if z == nil {
		z, _ = gzip.NewWriterLevel(w, gzip.BestSpeed) // a valid level does not fail
		return z
	}
	z.Reset(w)
	return z
}

func (p *packer) gzipped(plain []byte) []byte {
	var b bytes.Buffer
	b.Grow(len(plain) / 2)
	z := p.gzip(&b)
	z.Write(plain) // a bytes.Buffer does not fail
	z.Close()
	p.writers.Put(z)
	return b.Bytes()
}

func gunzipped(z []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(z))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxPayload+1))
	if err == nil && len(b) > maxPayload {
		err = errSize
	}
	return b, err
}

// fileAAD binds a piece of a sealed file to its message, place and end.
func fileAAD(key []byte, n, length uint32) []byte {
	b := append([]byte{'f'}, key...)
	b = binary.BigEndian.AppendUint32(b, n)
	return binary.BigEndian.AppendUint32(b, length&lastChunk)
}

// sealStream copies r to w in sealed pieces.
func (s *sealer) sealStream(w io.Writer, r io.Reader, key []byte) error {
	plain, ahead := make([]byte, chunkSize), make([]byte, chunkSize)
	var box []byte
	n, err := io.ReadFull(r, plain)
	for i := uint32(0); ; i++ {
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
		var next int
		if err == nil {
			next, err = io.ReadFull(r, ahead)
		}
		length := uint32(nonceSize + n + tagSize)
		if next == 0 {
			if err != io.EOF && err != io.ErrUnexpectedEOF {
				return err
			}
			length |= lastChunk
		}
		box = binary.BigEndian.AppendUint32(box[:0], length)
		b, serr := s.seal(box, plain[:n], fileAAD(key, i, length))
		if serr != nil {
			return serr
		}
		box = b
		if _, werr := w.Write(box); werr != nil {
			return werr
		}
		if length&lastChunk != 0 {
			return nil
		}
		plain, ahead, n = ahead, plain, next
	}
}

// openStream reverses sealStream. What it wrote before an error is worthless.
func (s *sealer) openStream(w io.Writer, r io.Reader, key []byte) error {
	buf := make([]byte, nonceSize+chunkSize+tagSize)
	var head [4]byte
	for i := uint32(0); ; i++ {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return errCut
		}
		length := binary.BigEndian.Uint32(head[:])
		size := length &^ lastChunk
		if size > uint32(len(buf)) {
			return errCut
		}
		if _, err := io.ReadFull(r, buf[:size]); err != nil {
			return errCut
		}
		plain, err := s.open(buf[:size], fileAAD(key, i, length))
		if err != nil {
			return err
		}
		if _, err := w.Write(plain); err != nil {
			return err
		}
		if length&lastChunk != 0 {
			if n, _ := r.Read(head[:1]); n != 0 {
				return errLeftover
			}
			return nil
		}
	}
}
