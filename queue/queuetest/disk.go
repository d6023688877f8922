package queuetest

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"unsafe"

	"go.etcd.io/bbolt"

	"smtpd/queue"
)

// sector is what a disk writes whole or not at all, in octets.
const sector = 512

// Disk is a queue.FS on a real folder that remembers every step: writes to the
// database, creations, syncs, renames, removals. From the record it makes the
// folder anew as a power cut could have left it at any step: what was not
// synced is there, or not, or in part, each piece for itself.
//
// Writes to the database are seen where bbolt issues them, one by one. Its syncs
// are not, and are taken from its protocol: pages, sync, meta page, sync; Disk
// checks that they are not switched off, and TestSyncOrder of the store holds the
// protocol against the system calls. Other files are written past Disk:
// their content counts as known when they are synced, and until then anything
// from nothing to all of it may be there.
type Disk struct {
	queue.OS
	root string

	mu    sync.Mutex
	ops   []op
	live  map[string]int // path -> inode
	inode int
	fail  func(step, name string) error
	dirty map[int]bool // databases whose meta page is written and not synced
}

type opKind int

const (
	opMark opKind = iota
	opCreate
	opMkdir
	opWrite
	opSync
	opSyncDir
	opRename
	opLink
	opRemove
)

// op is one step.
type op struct {
	kind     opKind
	path, to string
	inode    int
	off      int64
	data     []byte
	whole    bool // opSync: data is the content
	mark     any
}

// NewDisk makes a Disk on an empty folder.
func NewDisk(root string) *Disk {
	return &Disk{root: root, live: map[string]int{}, dirty: map[int]bool{}}
}

// Root is the folder.
func (d *Disk) Root() string { return d.root }

// SetFail has steps fail: f is asked before each ("write", "sync", "syncdir",
// "open", "rename", "link", "remove", "mkdir") with the name of the file.
func (d *Disk) SetFail(f func(step, name string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = f
}

// Mark notes something of the caller's among the steps.
func (d *Disk) Mark(v any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.add(op{kind: opMark, mark: v})
}

// Len is the number of steps so far.
func (d *Disk) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.ops)
}

// Marks are the marks among the first n steps.
func (d *Disk) Marks(n int) []any {
	d.mu.Lock()
	defer d.mu.Unlock()
	var l []any
	for _, o := range d.ops[:n] {
		if o.kind == opMark {
			l = append(l, o.mark)
		}
	}
	return l
}

// add notes a step. A commit that has been heard of was synced.
func (d *Disk) add(o op) {
	for ino := range d.dirty {
		d.ops = append(d.ops, op{kind: opSync, inode: ino})
		delete(d.dirty, ino)
	}
	d.ops = append(d.ops, o)
}

func (d *Disk) failing(step, name string) error {
	d.mu.Lock()
	f := d.fail
	d.mu.Unlock()
	if f == nil {
		return nil
	}
	if err := f(step, name); err != nil {
		return &fs.PathError{Op: step, Path: name, Err: err}
	}
	return nil
}

// OpenFile implements queue.FS.
func (d *Disk) OpenFile(name string, flag int, perm os.FileMode) (*os.File, error) {
	if err := d.failing("open", name); err != nil {
		return nil, err
	}
	f, err := d.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.live[name]; !ok {
		d.inode++
		d.live[name] = d.inode
		d.add(op{kind: opCreate, path: name, inode: d.inode})
	}
	return f, nil
}

// OpenDB implements queue.FS.
func (d *Disk) OpenDB(f *os.File, o *bbolt.Options) (*bbolt.DB, error) {
	if o.NoSync || o.NoGrowSync {
		return nil, errors.New("queuetest: a database that does not sync")
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	db, err := d.OS.OpenDB(f, o)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	name := f.Name()
	ino := d.live[name]
	if info.Size() == 0 { // bbolt has made it, and synced
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		d.add(op{kind: opWrite, inode: ino, data: b})
		d.add(op{kind: opSync, inode: ino})
	}
	write := hook(db)
	inner := *write
	page := int64(db.Info().PageSize)
	*write = func(b []byte, off int64) (int, error) {
		if err := d.failing("write", name); err != nil {
			return 0, err
		}
		d.mu.Lock()
		if db.NoSync {
			panic("queuetest: a database that does not sync")
		}
		meta := off < 2*page
		if meta {
			d.add(op{kind: opSync, inode: ino})
		}
		d.add(op{kind: opWrite, inode: ino, off: off, data: append([]byte(nil), b...)})
		if meta {
			d.dirty[ino] = true
		}
		d.mu.Unlock()
		return inner(b, off)
	}
	return db, nil
}

// hook is the place where bbolt keeps the function it writes with.
func hook(db *bbolt.DB) *func([]byte, int64) (int, error) {
	v := reflect.ValueOf(db).Elem().FieldByName("ops").FieldByName("writeAt")
	if !v.IsValid() || v.Type() != reflect.TypeFor[func([]byte, int64) (int, error)]() {
		panic("queuetest: this bbolt writes in another way")
	}
	return (*func([]byte, int64) (int, error))(unsafe.Pointer(v.UnsafeAddr()))
}

// Sync implements queue.FS.
func (d *Disk) Sync(f *os.File) error {
	if err := d.failing("sync", f.Name()); err != nil {
		return err
	}
	if err := d.OS.Sync(f); err != nil {
		return err
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.add(op{kind: opSync, inode: d.live[f.Name()], data: b, whole: true})
	return nil
}

// WriteAt implements queue.FS.
func (d *Disk) WriteAt(f *os.File, b []byte, off int64) (int, error) {
	if err := d.failing("write", f.Name()); err != nil {
		return 0, err
	}
	d.mu.Lock()
	d.add(op{kind: opWrite, inode: d.live[f.Name()], off: off, data: append([]byte(nil), b...)})
	d.mu.Unlock()
	return d.OS.WriteAt(f, b, off)
}

// SyncData implements queue.FS.
func (d *Disk) SyncData(f *os.File) error {
	if err := d.failing("sync", f.Name()); err != nil {
		return err
	}
	if err := d.OS.SyncData(f); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.add(op{kind: opSync, inode: d.live[f.Name()]})
	return nil
}

// SyncDir implements queue.FS.
func (d *Disk) SyncDir(name string) error {
	if err := d.failing("syncdir", name); err != nil {
		return err
	}
	err := d.OS.SyncDir(name)
	if err == nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.add(op{kind: opSyncDir, path: filepath.Clean(name)})
	}
	return err
}

// Rename implements queue.FS.
func (d *Disk) Rename(from, to string) error {
	if err := d.failing("rename", from); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.OS.Rename(from, to); err != nil {
		return err
	}
	d.add(op{kind: opRename, path: from, to: to, inode: d.live[from]})
	d.live[to] = d.live[from]
	delete(d.live, from)
	return nil
}

// Link implements queue.FS.
func (d *Disk) Link(from, to string) error {
	if err := d.failing("link", from); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.OS.Link(from, to); err != nil {
		return err
	}
	d.add(op{kind: opLink, path: from, to: to, inode: d.live[from]})
	d.live[to] = d.live[from]
	return nil
}

// Remove implements queue.FS.
func (d *Disk) Remove(name string) error {
	if err := d.failing("remove", name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.OS.Remove(name); err != nil {
		return err
	}
	d.add(op{kind: opRemove, path: name})
	delete(d.live, name)
	return nil
}

// Mkdir implements queue.FS.
func (d *Disk) Mkdir(name string, perm os.FileMode) error {
	if err := d.failing("mkdir", name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.OS.Mkdir(name, perm); err != nil {
		return err
	}
	d.add(op{kind: opMkdir, path: name})
	return nil
}

// content is what a file holds in a model of the disk.
type content struct {
	data    []byte // synced
	pending []op   // writes since
	known   bool   // has been synced as a whole, or is a database
}

// model is the disk at one moment: what is durable, and what is not.
type model struct {
	files   map[int]*content
	names   map[string]int
	dirs    map[string]bool
	pending []op // of names
}

// Crash makes the folder dir what a power cut before step n could have left.
func (d *Disk) Crash(n int, r *rand.Rand, dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := &model{files: map[int]*content{}, names: map[string]int{}, dirs: map[string]bool{}}
	for _, o := range d.ops[:n] {
		m.step(o)
	}
	for _, o := range m.pending {
		if r.IntN(2) == 0 {
			m.name(o)
		}
	}
	for name := range m.dirs {
		if err := os.MkdirAll(d.moved(name, dir), 0o700); err != nil {
			return err
		}
	}
	for name, ino := range m.names {
		if !m.hasDir(d.root, filepath.Dir(name)) {
			continue // lost with its folder
		}
		if err := os.WriteFile(d.moved(name, dir), d.left(m.files[ino], ino, n, r), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (d *Disk) moved(name, dir string) string {
	rel, err := filepath.Rel(d.root, name)
	if err != nil {
		panic(err) // Disk sees names below its root only
	}
	return filepath.Join(dir, rel)
}

func (m *model) hasDir(root, name string) bool {
	for ; name != root; name = filepath.Dir(name) {
		if !m.dirs[name] {
			return false
		}
	}
	return true
}

// step carries out one step on the model.
func (m *model) step(o op) {
	switch o.kind {
	case opWrite:
		c := m.files[o.inode]
		c.known = true
		c.pending = append(c.pending, o)
	case opSync:
		c := m.files[o.inode]
		if o.whole {
			c.data, c.known = append([]byte(nil), o.data...), true // later writes go into it
		}
		for _, w := range c.pending {
			c.write(w.off, w.data)
		}
		c.pending = nil
	case opSyncDir:
		var rest []op
		for _, p := range m.pending {
			if filepath.Dir(p.path) == o.path || filepath.Dir(p.to) == o.path {
				m.name(p)
			} else {
				rest = append(rest, p)
			}
		}
		m.pending = rest
	case opCreate:
		m.files[o.inode] = &content{}
		m.pending = append(m.pending, o)
	case opMkdir, opRename, opLink, opRemove:
		m.pending = append(m.pending, o)
	}
}

// name carries out a step on the names.
func (m *model) name(o op) {
	switch o.kind {
	case opCreate:
		m.names[o.path] = o.inode
	case opMkdir:
		m.dirs[o.path] = true
	case opRename:
		delete(m.names, o.path)
		m.names[o.to] = o.inode
	case opLink:
		m.names[o.to] = o.inode
	case opRemove:
		delete(m.names, o.path)
	}
}

func (c *content) write(off int64, b []byte) {
	if need := int(off) + len(b); need > len(c.data) {
		c.data = append(c.data, make([]byte, need-len(c.data))...)
	}
	copy(c.data[off:], b)
}

// left is what is found of a file: all that was synced, and any sectors of what
// was not.
func (d *Disk) left(c *content, ino, n int, r *rand.Rand) []byte {
	if !c.known {
		for _, o := range d.ops[n:] { // some of what it was to hold
			if o.kind == opSync && o.inode == ino && o.whole {
				return o.data[:r.IntN(len(o.data)+1)]
			}
		}
		return nil
	}
	after := &content{data: append([]byte(nil), c.data...)}
	for _, w := range c.pending {
		after.write(w.off+int64(len(w.data)), nil) // the size was there first
		switch r.IntN(3) {
		case 0: // lost
		case 1:
			after.write(w.off, w.data)
		default: // torn
			for at := 0; at < len(w.data); at += sector {
				if r.IntN(2) == 0 {
					after.write(w.off+int64(at), w.data[at:min(at+sector, len(w.data))])
				}
			}
		}
	}
	return after.data
}

// String names a step, for failures.
func (d *Disk) String() string { return fmt.Sprintf("disk %s, %d steps", d.root, d.Len()) }
