package parser

func (c *checker) lint() {}
