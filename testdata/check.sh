#!/bin/sh
# What can be said of the tree without running the daemon.
set -u
bad=0
fail() { echo "check: $*" >&2; bad=1; }

out=$(gofmt -l $(git ls-files '*.go')) && [ -z "$out" ] || fail "gofmt: $out"
go vet ./... || fail "go vet"
go tool staticcheck ./... || fail "staticcheck"
for os in openbsd freebsd; do
	GOOS=$os go vet ./... || fail "go vet for $os"
	for arch in amd64 arm64; do GOOS=$os GOARCH=$arch go build -o /dev/null ./... || fail "build for $os/$arch"; done
done
GOARCH=arm64 go build -o /dev/null ./... || fail "build for linux/arm64"
command -v mandoc >/dev/null || echo "check: mandoc is not installed: manual pages are not looked at"
command -v mandoc >/dev/null && for m in $(git ls-files '*.[1578]' ':!bench'); do
	mandoc -Tlint -Wwarning "$m" >/tmp/mandoc.$$ 2>&1 || fail "mandoc $m: $(cat /tmp/mandoc.$$)"
done
rm -f /tmp/mandoc.$$
before=$(cat parser/*.go go.mod go.sum | cksum)
go generate ./parser && go mod tidy || fail "generate"
[ "$before" = "$(cat parser/*.go go.mod go.sum | cksum)" ] || fail "generated files or go.mod are not up to date"
go test ./internal/arch || fail "internal/arch"
[ $bad = 0 ] && echo "check: all is well"
exit $bad
