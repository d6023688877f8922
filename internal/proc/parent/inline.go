package parent

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"smtpd/internal/config"
)

// inlineTables names the tables that are written into rules and actions. The
// parser counts them in each configuration anew; here a name stands for the same
// entries as long as the daemon runs, so that a process that works by an older
// configuration never takes one table for another. The zero value is ready.
type inlineTables struct {
	names map[[sha256.Size]byte]string
	count int
}

// inlinePrefix begins their names.
const inlinePrefix = "<dynamic:"

// byNumber orders <dynamic:2> before <dynamic:10>.
func byNumber(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}

// name renames the inline tables of a configuration that nobody has yet.
func (in *inlineTables) name(conf *config.Config) {
	if in.names == nil {
		in.names = map[[sha256.Size]byte]string{}
	}
	names := map[string]string{}
	for _, name := range slices.SortedFunc(maps.Keys(conf.Tables), byNumber) {
		if !strings.HasPrefix(name, inlinePrefix) {
			continue
		}
		t := *conf.Tables[name]
		t.Pos, t.Name = config.Pos{}, ""
		data, err := json.Marshal(t)
		if err != nil {
			panic("table cannot be encoded: " + err.Error()) // plain data: it always can
		}
		sum := sha256.Sum256(data)
		known, ok := in.names[sum]
		if !ok {
			in.count++
			known = fmt.Sprintf("%s%d>", inlinePrefix, in.count)
			in.names[sum] = known
		}
		names[name] = known
	}
	conf.RenameTables(names)
}
