package table

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// A map file is a bbolt database with two buckets: "meta" holds the keys
// "format" (mapFormat) and "type" (a MapType), "data" holds the entries, keys
// in lower case. It is written once and never changed: whoever has it open
// keeps the old file when a new one takes its name.
const (
	mapFormat  = "smtpd map 1"
	bucketMeta = "meta"
	bucketData = "data"
	keyFormat  = "format"
	keyType    = "type"
)

// MapType says how makemap reads its source.
type MapType string

// The types of `makemap -t`.
const (
	MapPlain   MapType = "map"     // key and value; the default
	MapAliases MapType = "aliases" // key and a list of items
	MapSet     MapType = "set"     // keys alone
)

// ParseMapType is the type that a word of `makemap -t` names. The words of -d
// are taken for the plain type: people who know sendmail's makemap write them
// here.
func ParseMapType(word string) (MapType, bool) {
	switch t := MapType(word); t {
	case MapPlain, MapAliases, MapSet:
		return t, true
	case "hash", "btree":
		return MapPlain, true
	}
	return "", false
}

// setValue is the value of every entry of a set.
const setValue = "<set>"

// ErrCreate is wrapped by an error of WriteMap when nothing can be written
// where the map is to be.
var ErrCreate = errors.New("cannot create the map")

// ReadMap reads the source of a map: one entry a line, '#' lines are comments,
// key and value parted by blanks or a colon. Keys become lower case; the
// values of aliases are checked and written anew, items parted by ", ". The
// first bad line ends it with a *LineError that reads "NAME:LINE: invalid entry",
// or "duplicate entry for KEY".
func ReadMap(r io.Reader, name string, typ MapType) ([][2]string, error) {
	var entries [][2]string
	in := bufio.NewScanner(r)
	in.Buffer(nil, MaxKey+MaxValue+64)
	seen := map[string]struct{}{}
	n := 1
	for ; in.Scan(); n++ {
		line := strings.TrimSpace(in.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := mapEntry(line, typ)
		if !ok {
			return nil, &LineError{name, n, errEntry}
		}
		key = Fold(key)
		if _, twice := seen[key]; twice {
			return nil, &LineError{name, n, fmt.Errorf("duplicate entry for %s", key)}
		}
		seen[key] = struct{}{}
		entries = append(entries, [2]string{key, value})
	}
	if errors.Is(in.Err(), bufio.ErrTooLong) {
		return nil, &LineError{name, n, errLong}
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return entries, nil
}

func mapEntry(line string, typ MapType) (key, value string, ok bool) {
	if typ == MapSet {
		return line, setValue, !strings.ContainsAny(line, " \t") && checkEntry(line, "") == nil
	}
	key, value, err := SplitEntry(line, true)
	if err != nil || value == "" || checkEntry(key, value) != nil {
		return "", "", false
	}
	if typ != MapAliases {
		return key, value, true
	}
	var words []string
	for rest, more := value, true; more; {
		var word string
		word, rest, more = cutItem(rest)
		word = strings.TrimSpace(word)
		if word == "" { // nothing between two commas, or after the last
			return "", "", false
		}
		if _, err := parseItem(word); err != nil {
			return "", "", false
		}
		words = append(words, word)
	}
	return key, strings.Join(words, ", "), true
}

// WriteMap makes the map file dst. The entries may come in any order; of two
// with one key the later counts. It is written to a temporary file beside dst,
// synced and renamed, so that dst is the old or the new map, whole, at any
// moment; mode is that of the new file.
func WriteMap(dst string, typ MapType, mode fs.FileMode, entries iter.Seq2[string, string]) error {
	sorted, err := sortEntries(entries)
	if err != nil {
		return err
	}
	dir := filepath.Dir(dst)
	tmp, err := os.CreateTemp(dir, filepath.Base(dst)+".new-*")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCreate, err)
	}
	name := tmp.Name()
	defer os.Remove(name) // fails once it was renamed
	err = errors.Join(tmp.Chmod(mode.Perm()), tmp.Close())
	if err == nil {
		err = fillMap(name, typ, sorted)
	}
	if err == nil {
		err = os.Rename(name, dst) // synced by fillMap: the name never leads to half a map
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write map %s: %w", dst, err)
	}
	return nil
}

// sortEntries orders entries by key, the later of two equals last, and checks
// their bounds.
func sortEntries(entries iter.Seq2[string, string]) ([][2]string, error) {
	var all [][2]string
	for k, v := range entries {
		if k == "" {
			return nil, errors.New("an entry has no key")
		}
		if err := checkEntry(k, v); err != nil {
			return nil, fmt.Errorf("entry %q: %w", k[:min(len(k), 64)], err)
		}
		all = append(all, [2]string{Fold(k), v})
	}
	slices.SortStableFunc(all, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return all, nil
}

// mapBatch is how many entries go into one transaction; bbolt keeps all pages
// of one in memory.
const mapBatch = 20000

func fillMap(path string, typ MapType, entries [][2]string) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return err
	}
	defer db.Close()
	err = db.Update(func(tx *bolt.Tx) error {
		meta, err := tx.CreateBucket([]byte(bucketMeta))
		if err != nil {
			return err
		}
		_, err = tx.CreateBucket([]byte(bucketData))
		return errors.Join(err, meta.Put([]byte(keyFormat), []byte(mapFormat)), meta.Put([]byte(keyType), []byte(typ)))
	})
	for batch := range slices.Chunk(entries, mapBatch) {
		if err != nil {
			break
		}
		err = db.Update(func(tx *bolt.Tx) error {
			data := tx.Bucket([]byte(bucketData))
			data.FillPercent = 1 // they come in order
			for _, e := range batch {
				if err := data.Put([]byte(e[0]), []byte(e[1])); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err == nil {
		err = db.Sync()
	}
	return errors.Join(err, db.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// DumpMap calls yield for each entry of a map file, ours or one of Berkeley DB
// (hash or btree), in the order of the file, until it returns an error. It is
// `makemap -U`: one line per entry, key and value parted by a tab.
func DumpMap(path string, yield func(key, value string) error) error {
	return readMapFile(path, yield)
}
