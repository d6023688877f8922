package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// powerDisk is a disk that remembers in which order it was written and flushed,
// and so knows what it would hold had the power failed at any moment. It is a
// file that this process gives to the kernel (fuse(4)), under a loop device.
type powerDisk struct {
	dir   string   // holds the file disk, and what before it was
	fuse  int      // descriptor
	image *os.File // what the disk holds now
	size  int64
	done  chan struct{}

	mu  sync.Mutex
	log []diskWrite
}

// diskWrite is one request of the kernel that changes what a disk holds.
type diskWrite struct {
	off  int64
	data []byte // nil: all before it has to be on disk
}

// moment is how many requests the disk has seen; what is on disk now is there at
// this moment and at all that follow.
func (d *powerDisk) moment() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.log)
}

// newPowerDisk gives the image dir/before to the kernel as dir/disk. What is
// written from now on is remembered in memory.
func newPowerDisk(dir string) (*powerDisk, error) {
	d := &powerDisk{dir: dir, done: make(chan struct{})}
	if out, err := exec.Command("cp", "--sparse=always", dir+"/before", dir+"/now").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	var err error
	if d.image, err = os.OpenFile(dir+"/now", os.O_RDWR, 0); err != nil {
		return nil, err
	}
	st, err := d.image.Stat()
	if err != nil {
		return nil, err
	}
	d.size = st.Size()
	if d.fuse, err = syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	if err := os.WriteFile(dir+"/disk", nil, 0o600); err != nil {
		return nil, err
	}
	opts := fmt.Sprintf("fd=%d,rootmode=100600,user_id=0,group_id=0", d.fuse)
	if err := syscall.Mount("power", dir+"/disk", "fuse", 0, opts); err != nil {
		syscall.Close(d.fuse)
		return nil, fmt.Errorf("mount of fuse: %w", err)
	}
	go d.serve() // ends when the file is unmounted
	return d, nil
}

// close takes the file away from the kernel.
func (d *powerDisk) close() error {
	err := syscall.Unmount(d.dir+"/disk", 0)
	if err == nil {
		<-d.done
	}
	return errors.Join(err, syscall.Close(d.fuse), d.image.Close())
}

// The requests of fuse(4) that one file gets.
const (
	fuseForget      = 2
	fuseGetattr     = 3
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseRelease     = 18
	fuseFsync       = 20
	fuseInit        = 26
	fuseInterrupt   = 36
	fuseBatchForget = 42

	fuseInHead  = 40
	fuseOutHead = 16
	fuseMaxIO   = 1 << 20
)

func (d *powerDisk) serve() {
	defer close(d.done)
	buf := make([]byte, fuseMaxIO+4096)
	for {
		n, err := syscall.Read(d.fuse, buf)
		if err == syscall.EINTR || err == syscall.ENOENT {
			continue
		}
		if err != nil || n < fuseInHead {
			return // ENODEV: unmounted
		}
		ne := binary.NativeEndian
		op := ne.Uint32(buf[4:])
		if op == fuseForget || op == fuseBatchForget || op == fuseInterrupt {
			continue // not answered
		}
		out := make([]byte, fuseOutHead, fuseOutHead+128)
		out, errno := d.answer(op, buf[fuseInHead:n], out)
		if errno != 0 {
			out = out[:fuseOutHead]
			ne.PutUint32(out[4:], uint32(-int32(errno)))
		}
		ne.PutUint32(out, uint32(len(out)))
		copy(out[8:16], buf[8:16])
		if _, err := syscall.Write(d.fuse, out); err != nil && err != syscall.ENOENT {
			return
		}
	}
}

// answer carries out one request and adds what is answered to out.
func (d *powerDisk) answer(op uint32, in, out []byte) ([]byte, syscall.Errno) {
	ne := binary.NativeEndian
	switch op {
	case fuseInit:
		const bigWrites, maxPages = 1 << 5, 1 << 22
		words := []uint32{7, 31, fuseMaxIO, bigWrites | maxPages, 0, fuseMaxIO, 1, fuseMaxIO / 4096}
		for _, w := range append(words, make([]uint32, 8)...) {
			out = ne.AppendUint32(out, w)
		}
	case fuseGetattr:
		out = append(out, make([]byte, 104)...)
		attr := out[fuseOutHead+16:]
		ne.PutUint64(attr, 1) // inode
		ne.PutUint64(attr[8:], uint64(d.size))
		ne.PutUint64(attr[16:], uint64(d.size/512))
		ne.PutUint32(attr[60:], syscall.S_IFREG|0o600)
		ne.PutUint32(attr[64:], 1) // link
		ne.PutUint32(attr[80:], 4096)
	case fuseOpen:
		const directIO = 1
		out = append(out, make([]byte, 16)...)
		ne.PutUint32(out[fuseOutHead+8:], directIO)
	case fuseRead:
		off, size := int64(ne.Uint64(in[8:])), int(ne.Uint32(in[16:]))
		data := make([]byte, size)
		n, _ := d.image.ReadAt(data, off)
		out = append(out, data[:n]...)
	case fuseWrite:
		off, data := int64(ne.Uint64(in[8:])), in[fuseInHead:]
		if _, err := d.image.WriteAt(data, off); err != nil {
			return out, syscall.EIO
		}
		d.remember(diskWrite{off, append([]byte{}, data...)})
		out = ne.AppendUint64(out, uint64(len(data)))
	case fuseFsync:
		d.remember(diskWrite{})
	case fuseRelease:
	default:
		return out, syscall.ENOSYS
	}
	return out, 0
}

func (d *powerDisk) remember(w diskWrite) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, w)
}

// cut writes to the file name what the disk holds when the power fails at a
// moment. A disk may have a memory of its own, in which some of what was written
// since it was told to flush is lost: which, chance says; without, all is there.
func (d *powerDisk) cut(name string, moment int, chance *rand.Rand) error {
	if out, err := exec.Command("cp", "--sparse=always", d.dir+"/before", name).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	d.mu.Lock()
	log := d.log[:moment]
	d.mu.Unlock()
	flushed := len(log)
	for flushed > 0 && log[flushed-1].data != nil {
		flushed--
	}
	for i, w := range log {
		if i >= flushed && chance != nil && chance.IntN(2) == 0 {
			continue
		}
		if _, err := f.WriteAt(w.data, w.off); err != nil {
			return err
		}
	}
	return nil
}

// powerMounts are the folders that are on the disk, and where they are seen.
var powerMounts = [][2]string{{"home", "/home"}, {"mail", "/var/mail"}, {"spool", "/var/spool"}}

// mountPower mounts the file system in a file, and its folders where they belong.
func mountPower(file, at string) error {
	script := `set -e
loop=$(losetup --find --show "$1")
mkdir -p "$2"
mount "$loop" "$2" || { losetup -d "$loop"; exit 1; }
losetup -d "$loop" # goes with the mount
`
	for _, m := range powerMounts {
		script += "mkdir -p \"$2\"/" + m[0] + "; mount --bind \"$2\"/" + m[0] + " " + m[1] + "\n"
	}
	out, err := exec.Command("sh", "-c", script, "sh", file, at).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func umountPower(t *testing.T, at string) {
	t.Helper()
	dirs := []string{}
	for _, m := range powerMounts {
		dirs = append(dirs, m[1])
	}
	if out, err := exec.Command("umount", append(dirs, at)...).CombinedOutput(); err != nil {
		t.Fatalf("umount: %v: %s", err, out)
	}
}

// tornExtent is how fsck.ext4 tells that a file's list of blocks was being changed.
var tornExtent = regexp.MustCompile(`(?m)^Inode \d+.* extent .*\n(?:\s.*\n)?Clear\? yes`)

// checkPower is what a machine does with its disk after the power came back. An
// ext4 without a journal changes the lists of blocks of a file in place, the inode
// with whatever lies beside it, and fsck gives up what it finds half changed: torn
// says that this was such a moment, and that files which grow may lack anything.
func checkPower(kind, file string) (torn bool, err error) {
	if kind != "ext4" {
		return false, nil // these mend themselves when they are mounted
	}
	out, err := exec.Command("fsck.ext4", "-fy", file).CombinedOutput()
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.ExitCode() < 4 {
		err = nil // mended
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, tail(out, 10))
	}
	return tornExtent.Match(out), err
}

// makePower makes an empty file system, mkfs being the command, as dir/before.
func makePower(dir, mkfs string) error {
	words := strings.Fields(mkfs)
	name := filepath.Join(dir, "before")
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(400<<20), f.Close()); err != nil {
		return err
	}
	if out, err := exec.Command(words[0], append(words[1:], name)...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", mkfs, err, out)
	}
	return nil
}
