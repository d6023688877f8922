package smtp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/log"
)

// Bounds of the PROXY header (haproxy's proxy-protocol.txt, version 2.2).
const (
	proxyTimeout  = 5 * time.Second // ours: a proxy sends it with the first packet
	proxyMaxLine  = 107             // section 2.1, with CRLF
	proxyMaxBlock = 4096            // ours: addresses and every extension of section 2.2
)

// proxySignature begins a header of version 2.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

var errProxy = errors.New("bad PROXY header")

// proxy reads the header that a proxy puts in front of the dialogue, and from
// then on the client is who it says. Anything wrong ends the connection without
// a word: whoever is at the other end does not speak SMTP to us.
func (s *Session) proxy() bool {
	peer := s.client.Addr
	err := errors.New("not from this address")
	if proxyAllowed(s.c.Listener.ProxyFrom, peer.Addr()) {
		err = s.readProxy()
	}
	if err == nil {
		if refusal := s.c.Backend.Admit(s.client.Addr.Addr()); refusal != "" {
			s.say(refusal)
			err = errors.New(refusal)
		} else {
			s.admitted = s.client.Addr.Addr()
			return true
		}
	}
	s.c.Log.Event(s.client.Session, "smtp proxy-refused", slog.String("address", peer.Addr().String()),
		log.Quoted("reason", err.Error()))
	s.close("proxy")
	return false
}

func (s *Session) readProxy() error {
	if err := s.raw.SetReadDeadline(time.Now().Add(proxyTimeout)); err != nil {
		return err
	}
	src, dst, err := readProxyHeader(s.raw)
	if err != nil {
		return err
	}
	if src.IsValid() {
		s.client.Addr, s.client.Local = unmap(src), unmap(dst)
	}
	return nil
}

// proxyAllowed reports whether a peer may speak for others.
func proxyAllowed(from []netip.Prefix, peer netip.Addr) bool {
	if len(from) == 0 {
		return peer.IsLoopback() || peer.IsPrivate() || peer.IsLinkLocalUnicast()
	}
	for _, p := range from {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}

// readProxyHeader reads a header of either version and not an octet more. An
// invalid source means that the connection is the proxy's own.
func readProxyHeader(r io.Reader) (src, dst netip.AddrPort, err error) {
	var head [len(proxySignature)]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return src, dst, fmt.Errorf("%w: %w", errProxy, err)
	}
	switch {
	case string(head[:]) == proxySignature:
		return readProxyV2(r)
	case bytes.HasPrefix(head[:], []byte("PROXY ")):
		return readProxyV1(r, head[:])
	}
	return src, dst, errProxy
}

// readProxyV1 reads the rest of a line, octet by octet: what follows it is not
// ours to read.
func readProxyV1(r io.Reader, line []byte) (src, dst netip.AddrPort, err error) {
	for !bytes.HasSuffix(line, []byte("\r\n")) {
		var b [1]byte
		if _, err := io.ReadFull(r, b[:]); err != nil || len(line) >= proxyMaxLine {
			return src, dst, errProxy
		}
		line = append(line, b[0])
	}
	f := strings.Split(string(line[:len(line)-2]), " ")
	if f[1] == "UNKNOWN" {
		return src, dst, nil
	}
	if len(f) != 6 || (f[1] != "TCP4" && f[1] != "TCP6") {
		return src, dst, errProxy
	}
	src, ok1 := proxyAddr(f[2], f[4], f[1] == "TCP4")
	dst, ok2 := proxyAddr(f[3], f[5], f[1] == "TCP4")
	if !ok1 || !ok2 {
		return netip.AddrPort{}, netip.AddrPort{}, errProxy
	}
	return src, dst, nil
}

func proxyAddr(addr, port string, is4 bool) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(addr)
	p, perr := strconv.ParseUint(port, 10, 16)
	ok := err == nil && perr == nil && a.Is4() == is4 && a.Zone() == "" && port == strconv.FormatUint(p, 10)
	return netip.AddrPortFrom(a, uint16(p)), ok
}

// Octets of a version 2 header.
const (
	proxyLocal = 0x20 // version and command
	proxyProxy = 0x21
	proxyNone  = 0x00 // family and protocol
	proxyTCP4  = 0x11
	proxyTCP6  = 0x21
	proxyCRC   = 0x03 // type of an extension: CRC32C of the whole header
)

func readProxyV2(r io.Reader) (src, dst netip.AddrPort, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return src, dst, errProxy
	}
	n := int(binary.BigEndian.Uint16(head[2:]))
	if n > proxyMaxBlock {
		return src, dst, errProxy
	}
	block := make([]byte, n)
	if _, err := io.ReadFull(r, block); err != nil {
		return src, dst, errProxy
	}
	size := map[byte]int{proxyNone: 0, proxyTCP4: 4, proxyTCP6: 16}
	ip, known := size[head[1]]
	switch {
	case head[0] == proxyLocal:
		return src, dst, nil
	case head[0] != proxyProxy || !known || len(block) < 2*ip:
		return src, dst, errProxy
	case ip == 0:
		return src, dst, nil
	case len(block) < 2*ip+4 || !proxyChecksum(head[:], block, 2*ip+4):
		return src, dst, errProxy
	}
	from, _ := netip.AddrFromSlice(block[:ip])
	to, _ := netip.AddrFromSlice(block[ip : 2*ip])
	ports := block[2*ip:]
	return netip.AddrPortFrom(from, binary.BigEndian.Uint16(ports)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(ports[2:])), nil
}

// proxyChecksum walks the extensions, which begin at i, and checks the sum if
// there is one.
func proxyChecksum(head, block []byte, i int) bool {
	for i < len(block) {
		if i+3 > len(block) {
			return false
		}
		kind, n := block[i], int(binary.BigEndian.Uint16(block[i+1:]))
		i += 3
		if i+n > len(block) {
			return false
		}
		if kind == proxyCRC {
			if n != 4 {
				return false
			}
			want := binary.BigEndian.Uint32(block[i:])
			zeroed := bytes.Clone(block)
			clear(zeroed[i : i+4])
			table := crc32.MakeTable(crc32.Castagnoli)
			sum := crc32.Update(0, table, []byte(proxySignature))
			if crc32.Update(crc32.Update(sum, table, head), table, zeroed) != want {
				return false
			}
		}
		i += n
	}
	return true
}
