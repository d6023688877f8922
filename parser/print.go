package parser

import (
	"context"
	"io"

	"smtpd/internal/config"
)

func Modern(ctx context.Context, o Options) (string, Diagnostics) { return "", nil }

func Describe(w io.Writer, c *config.Config) {}
