package parent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// watchEvery is how often the files of certificates and keys are looked at.
// Ours: a look is a stat for each. A file that has changed is read once it has
// rested from one look to the next, so that one being written is not.
const watchEvery = 2 * time.Second

// fileState is what tells one state of a file from another, symbolic links
// followed. The zero value is a file that is not there.
type fileState struct {
	info  fs.FileInfo
	size  int64
	mtime time.Time
}

func stateOf(path string) fileState {
	fi, err := os.Stat(path)
	if err != nil {
		return fileState{}
	}
	return fileState{fi, fi.Size(), fi.ModTime()}
}

func (s fileState) same(o fileState) bool {
	if s.info == nil || o.info == nil {
		return s.info == o.info
	}
	return os.SameFile(s.info, o.info) && s.size == o.size && s.mtime.Equal(o.mtime) && s.info.Mode() == o.info.Mode()
}

// files are the files that a configuration was made from, its own text and the
// tables aside: certificates, keys and authorities.
type files struct {
	known  map[string]fileState // as they were read
	last   map[string]fileState // as last seen
	coming map[string]fileState // of a configuration that is on its way
}

// pemFiles are those of a configuration.
func pemFiles(conf *config.Config) []string {
	seen := map[string]bool{}
	for _, p := range conf.PKI {
		seen[p.CertFile], seen[p.KeyFile] = true, true
	}
	for _, ca := range conf.CA {
		seen[ca.CertFile] = true
	}
	delete(seen, "")
	return slices.Sorted(maps.Keys(seen))
}

// settle is how long after a change a file system may give a second change the
// same time.
const settle = time.Second

// next notes the files of a configuration whose reading began at began. What
// was written since, or so shortly before that one cannot tell, counts as not
// read.
func (f *files) next(conf *config.Config, began time.Time) {
	f.coming = map[string]fileState{}
	for _, path := range pemFiles(conf) {
		st := stateOf(path)
		if st.info != nil && st.mtime.After(began.Add(-settle)) {
			st.mtime = time.Time{} // is like no state it can be found in
		}
		f.coming[path] = st
	}
}

// adopt makes the files of the configuration on its way the known ones.
func (f *files) adopt() {
	if f.coming != nil {
		f.known, f.last, f.coming = f.coming, nil, nil
	}
}

// forget gives up the configuration on its way.
func (f *files) forget() { f.coming = nil }

// look takes the present states and tells which files have changed and come to
// rest since they were last read, or reported.
func (f *files) look(now map[string]fileState) (changed []string) {
	for path, st := range now {
		known, watched := f.known[path]
		before, seen := f.last[path]
		if watched && seen && !st.same(known) && st.same(before) {
			f.known[path] = st
			changed = append(changed, path)
		}
	}
	f.last = now
	slices.Sort(changed)
	return changed
}

// watch looks at the files, on a goroutine of its own: a file system that
// hangs stops nobody else.
func (p *parent) watch() {
	if p.looking || p.busy || !p.started || p.stopping {
		return
	}
	paths := slices.Collect(maps.Keys(p.files.known))
	p.looking = true
	p.tasks.Go(func() {
		now := map[string]fileState{}
		for _, path := range paths {
			now[path] = stateOf(path)
		}
		p.do(func() {
			p.looking = false
			if p.busy {
				return // all of them are being read anyway
			}
			if changed := p.files.look(now); len(changed) > 0 {
				p.renewFiles(changed)
			}
		})
	})
}

// renewFiles puts certificates in force that have changed on disk, and nothing
// else: the text of the configuration is not read. A broken one leaves all as
// they are.
func (p *parent) renewFiles(changed []string) {
	names := strings.Join(changed, ", ")
	p.renew(&order{
		read:   p.again(true),
		done:   "info: certificates renewed: " + names,
		failed: "warn: certificates not renewed, the old ones stay in force: ",
	}, nil)
}

// again reads what the present configuration took from the system anew, with
// the files or the addresses alone. When nothing is new it is the very same.
func (p *parent) again(files bool) func(context.Context) (*config.Config, error) {
	return func(ctx context.Context) (*config.Config, error) {
		conf := p.shared.Load()
		next, err := p.o.Renew(ctx, conf, files)
		if err == nil && reflect.DeepEqual(next.PKI, conf.PKI) && reflect.DeepEqual(next.CA, conf.CA) &&
			slices.Equal(next.LocalAddrs, conf.LocalAddrs) && len(next.Pending) == len(conf.Pending) {
			return conf, nil
		}
		return next, err
	}
}

// maxTableFile bounds a table file. Ours, see package table.
const maxTableFile = 1 << 30

// openTable opens a table file for lookup. It must be one that the present
// configuration, or the one on its way, names.
func (p *parent) openTable(r *ipc.Request, path string) {
	if !p.namesTable(path) {
		r.Reply(&imsg.TableOpened{Error: "no table of the configuration is that file"}, nil)
		return
	}
	p.tasks.Go(func() {
		f, err := openRegular(path)
		if err != nil {
			r.Reply(&imsg.TableOpened{Error: mail.Clean(err.Error(), imsg.MaxText)}, nil)
			return
		}
		r.Reply(&imsg.TableOpened{}, f)
	})
}

func (p *parent) namesTable(path string) bool {
	confs := []*config.Config{p.conf}
	if p.change != nil && p.change.conf != nil {
		confs = append(confs, p.change.conf)
	}
	for _, conf := range confs {
		for _, t := range conf.Tables {
			if t.InFile() && t.Param == path {
				return true
			}
		}
	}
	return false
}

// openRegular opens a regular file for reading and waits for nothing.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			err = pe.Err // the asker knows the path
		}
		return nil, err
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
	case !fi.Mode().IsRegular():
		err = errors.New("not a regular file")
	case fi.Size() > maxTableFile:
		err = fmt.Errorf("larger than %d octets", maxTableFile)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
