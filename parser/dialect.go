package parser

// generation is one of the three forms the language has had.
type generation int

const (
	modern     generation = iota // action and match, since 6.4
	acceptForm                   // table and accept, 5.3 to 6.3
	mapForm                      // map and accept, 4.6 to 5.2
)

// dialect is the generation of a file and the line that settles it.
type dialect struct {
	kind  generation
	first *token // nil: nothing settles it
}

// detect tells the generation of a configuration by the first words of its
// statements.
func detect(toks []token) dialect { return dialect{} }

// grammars are those that may read a statement, the likeliest first.
func (d dialect) grammars(toks []token) []*grammar {
	return []*grammar{&modernGrammar}
}

func firstWord(w string) bool {
	for _, f := range modernFirst {
		if f == w {
			return true
		}
	}
	return false
}

func translate(o *Options, in *input) *tree { return in.tree }
