package mda

import (
	"io"
	"runtime"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// maxBatch bounds the files that are made together. Ours: more gain nothing, and
// each has a descriptor open.
const maxBatch = 64

// manyFiles is from how many on the files of a batch are written by several
// threads. Ours: for fewer, what the others cost is more than what they gain.
const manyFiles = 32

// Hands is how many files are written at a time when there are many: to make a
// file and to bring it to disk is the kernel's work and waiting, apart from that
// for other files. Ours: so many keep the disk busy, whatever the processors.
const Hands = 4

// job is one file on its way into a folder.
type job struct {
	v    *Delivery
	name string // final
	tmp  string // in tmp
	fd   int
	err  error

	lead chan struct{} // told to write the next batch
	done chan struct{} // closed when err is final
}

// store adds a file to the folder. Deliveries that come while the files of a batch
// are being written wait and make up the next, so that the disk is waited for once
// for all of them: what writes to the same folder excludes each other in the kernel
// anyway.
func (f *folder) store(d *Deliverer, j *job) error {
	f.mu.Lock()
	f.waiting = append(f.waiting, j)
	lead := !f.leading
	f.leading = true
	f.mu.Unlock()
	_ = d.step("join") // no place to fail: tests watch it
	if !lead {
		select {
		case <-j.done:
			return j.err
		case <-j.lead:
		}
	}
	runtime.Gosched() // those who have come meanwhile join before anything waits for the disk
	f.mu.Lock()
	batch := f.waiting[:min(len(f.waiting), maxBatch)]
	f.waiting = f.waiting[len(batch):]
	f.mu.Unlock()

	f.write(d, batch)

	for _, j := range batch {
		close(j.done)
	}
	return j.err
}

// handOver lets the next batch begin.
func (f *folder) handOver() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.waiting) > 0 {
		f.waiting[0].lead <- struct{}{}
	} else {
		f.leading, f.waiting = false, nil
	}
}

// write makes the files of a batch: first all octets, then all names, for only
// what is on disk may be seen. The next batch begins when this needs names only.
func (f *folder) write(d *Deliverer, batch []*job) {
	if len(batch) < manyFiles {
		f.writeTexts(d, batch)
	} else {
		d.wide.Do(d.o.Wide)
		var hands sync.WaitGroup
		for part := range slices.Chunk(batch, (len(batch)+Hands-1)/Hands) {
			hands.Go(func() { f.writeTexts(d, part) })
		}
		hands.Wait()
	}
	f.handOver()
	named := false
	for _, j := range batch {
		if j.err == nil {
			j.err = f.publish(d, j)
			named = named || j.err == nil
		}
		f.finish(j)
	}
	if !named {
		return
	}
	err := syncNames(d, f.new)
	for _, j := range batch {
		if j.err == nil {
			j.err = err
		}
	}
}

// writeTexts makes the files of a part of a batch, in tmp, and brings them to disk.
func (f *folder) writeTexts(d *Deliverer, part []*job) {
	for _, j := range part {
		if j.err = f.create(d, j); j.err == nil {
			j.err = d.fill(j.fd, j.v)
		}
		if j.err == nil && len(part) > 1 {
			beginSync(j.fd)
		}
	}
	for _, j := range part {
		if j.err == nil {
			if j.err = d.step("sync"); j.err == nil {
				j.err = syncFile(j.fd)
			}
		}
	}
}

// create makes a new file in tmp. It has a name before it is synced: that an
// inode has one is written with its octets, and an ext4 without a journal brings
// it to disk in no other way. Where the system can, the file is made without a
// name and linked at once: to look for a free inode can take long, and the name
// would have the folder locked meanwhile.
func (f *folder) create(d *Deliverer, j *job) (err error) {
	j.tmp = j.name + "." + strconv.Itoa(d.pid) + "_" + strconv.FormatUint(d.folders.serial.Add(1), 10)
	if j.fd, err = createNameless(f.tmp, j.tmp); err == nil {
		return nil
	}
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW
	j.fd, err = openat(f.tmp, j.tmp, flags, 0o600)
	if err == unix.EEXIST {
		// The name holds our process id: this was left by one that has died.
		_ = unix.Unlinkat(f.tmp, j.tmp, 0)
		j.fd, err = openat(f.tmp, j.tmp, flags, 0o600)
	}
	return err
}

// publish gives the file its name in new. One that has this name already is the
// same mail.
func (f *folder) publish(d *Deliverer, j *job) error {
	if err := d.step("rename"); err != nil {
		return err
	}
	return retry(func() error { return unix.Renameat(f.tmp, j.tmp, f.new, j.name) })
}

// finish closes the file of a job; one that has failed leaves nothing in tmp.
func (f *folder) finish(j *job) {
	if j.fd < 0 {
		return
	}
	if err := unix.Close(j.fd); err != nil && j.err == nil {
		j.err = err // where quotas of network file systems speak up
	}
	if j.err != nil {
		_ = unix.Unlinkat(f.tmp, j.tmp, 0)
	}
}

// syncNames brings the names in a folder to disk.
func syncNames(d *Deliverer, dir int) error {
	if err := d.step("dirsync"); err != nil {
		return err
	}
	return retry(func() error { return unix.Fsync(dir) })
}

// fill writes the text to a file.
func (d *Deliverer) fill(fd int, v *Delivery) error {
	if err := d.step("write"); err != nil {
		return err
	}
	p := buffers.Get().(*[]byte)
	defer buffers.Put(p)
	b := v.front((*p)[:0])
	if v.Text.File == nil {
		return writeAll(fd, append(b, v.Text.Data...))
	}
	return copyText(fd, b, v.Text.open())
}

// copyText writes b and what r has, in pieces of b's capacity.
func copyText(fd int, b []byte, r io.Reader) error {
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if len(b) == cap(b) || err != nil {
			if werr := writeAll(fd, b); werr != nil {
				return werr
			}
			b = b[:0]
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
