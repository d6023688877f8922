# make           builds bin/smtpd, bin/smtpctl and the small programs
# make demo      shows a mail being delivered
# make test      everything that must be green
# More targets below; PREFIX, DESTDIR and the build settings can be set.

GO       ?= go
PREFIX   ?= /usr/local
BUILDDIR ?= bin
FUZZTIME ?= 30s

# Build settings: where things are and who the processes run as.
CONFDIRS    ?= /etc/mail:/etc
SPOOL       ?= /var/spool/smtpd
SOCKET      ?= /run/smtpd.sock
DAEMON_USER ?= _smtpd
QUEUE_USER  ?= _smtpq

SETTINGS = -X smtpd/internal/ctl.ConfDirList=$(CONFDIRS) -X smtpd/internal/ctl.Spool=$(SPOOL) \
	-X smtpd/internal/ctl.Socket=$(SOCKET) -X smtpd/internal/ctl.DaemonUser=$(DAEMON_USER) \
	-X smtpd/internal/ctl.QueueUser=$(QUEUE_USER)

export CGO_ENABLED = 0

CMDS = $(notdir $(wildcard cmd/*))

# Programs that smtpd starts, or wrappers and .forward files name.
HELPERS = $(filter mail.% table-%,$(CMDS))

.PHONY: all build demo test race e2e root torture sim fuzz bench cover generate check install clean cross

all: build

# Code is laid out by cmd/NAME/NAME.pgo where there is one: see bench/profile.
build:
	@mkdir -p $(BUILDDIR)
	@for c in $(CMDS); do \
		pgo=off; test ! -f cmd/$$c/$$c.pgo || pgo=$(CURDIR)/cmd/$$c/$$c.pgo; \
		$(GO) build -trimpath -pgo=$$pgo -ldflags '-s -w $(SETTINGS)' -o $(BUILDDIR)/$$c ./cmd/$$c || exit 1; done

# The newcomer's first command: build, start, send, look.
demo: build
	@sh testdata/demo.sh $(BUILDDIR)

# The newcomer's second command. testdata/setup.sh installs, as root, the
# clients and peers that the end-to-end tests talk to.
test: build
	@sh testdata/setup.sh
	$(GO) test -timeout 20m ./...

# The race detector needs cgo.
race:
	CGO_ENABLED=1 $(GO) test -race ./...

e2e: build
	@sh testdata/setup.sh
	$(GO) test -count=1 ./cmd/smtpd

root: build
	@test "$$(id -u)" = 0 || { echo "make root needs root"; exit 1; }
	$(GO) test -count=1 -v -run 'Root|Posture|Torture' ./cmd/smtpd ./mda ./internal/proc/parent

# Kills the daemon 200 times under load; every long upload and crowd; 10,000 mails
# under readers that delete, 5,000 deliveries under kills, races of names. As root.
torture: build
	@test "$$(id -u)" = 0 || { echo "make torture needs root"; exit 1; }
	SMTPD_TORTURE=1 SMTPD_KILL_ROUNDS=200 SMTPD_TEST_READERS=10000 SMTPD_TEST_DELIVERIES=5000 $(GO) test -count=1 -v -timeout 3h -run 'TestRoot' ./cmd/smtpd
	RACE_TIME=60s $(GO) test -count=1 -v -timeout 1h -run TestRootRaces ./mda

# Simulated worlds of queue, scheduler and deliveries, each from a seed.
SIM_SEEDS ?= 2000
sim:
	$(GO) test -count=1 -timeout 1h ./internal/proc/queue -run TestSimulation -sim.seeds $(SIM_SEEDS)

# Every decoder for FUZZTIME, and broken sessions over connections.
MUTATIONS ?= 1000000
fuzz:
	SMTPD_MUTATIONS=$(MUTATIONS) $(GO) test -count=1 -timeout 1h -run '^TestMutations$$' ./internal/smtp
	@for p in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
			echo "== $$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
		done; done

bench: build
	$(GO) test -run '^$$' -bench . -benchmem ./...

cover:
	$(GO) test -coverprofile=cover.out ./... && $(GO) tool cover -func=cover.out | tail -1

generate:
	$(GO) generate ./...

# Everything that can be said without running the daemon.
check: build
	@sh testdata/check.sh

cross:
	@for os in linux openbsd freebsd; do for arch in amd64 arm64 arm; do \
		echo "$$os/$$arch"; GOOS=$$os GOARCH=$$arch $(GO) build -o /dev/null ./... || exit 1; done; done

install: build
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/libexec/smtpd $(DESTDIR)/var/empty \
		$(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man5 \
		$(DESTDIR)$(PREFIX)/share/man/man7 $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 0755 $(BUILDDIR)/smtpd $(DESTDIR)$(PREFIX)/sbin/smtpd
	install -m 0755 $(BUILDDIR)/smtpctl $(DESTDIR)$(PREFIX)/sbin/smtpctl
	install -m 0755 $(BUILDDIR)/smtp $(DESTDIR)$(PREFIX)/bin/smtp
	@test -n "$(DESTDIR)" || { chgrp $(QUEUE_USER) $(PREFIX)/sbin/smtpctl && chmod 2555 $(PREFIX)/sbin/smtpctl; }
	for p in $(HELPERS); do install -m 0755 $(BUILDDIR)/$$p $(DESTDIR)$(PREFIX)/libexec/smtpd/$$p; done
	for n in sendmail send-mail mailq newaliases makemap; do ln -sf smtpctl $(DESTDIR)$(PREFIX)/sbin/$$n; done
	for s in 1 5 7 8; do for m in $$(find cmd parser table internal -name "*.$$s"); do \
		install -m 0644 $$m $(DESTDIR)$(PREFIX)/share/man/man$$s/; done; done

clean:
	rm -rf $(BUILDDIR) cover.out
