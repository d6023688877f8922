package parser

func filterHint(toks []token, at int) string { return "" }
