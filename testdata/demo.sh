#!/bin/sh
# Shows one mail by SMTP and one by sendmail being delivered by a daemon that
# runs unprivileged in a scratch folder. usage: demo.sh BINDIR
set -eu
bin=$(cd "$1" && pwd)
if [ "$(id -u)" = 0 ]; then
	# Nobody must be able to run what was built, wherever root keeps it.
	dir=$(mktemp -d /tmp/smtpd-demo.XXXXXX)
	cp "$bin/smtpd" "$bin/smtpctl" "$dir/"
	cp "$0" "$dir/demo.sh"
	chown -R 65534:65534 "$dir"
	set +e
	setpriv --reuid=65534 --regid=65534 --clear-groups sh "$dir/demo.sh" "$dir"
	status=$?
	rm -rf "$dir"
	exit $status
fi
dir=$(mktemp -d "${TMPDIR:-/tmp}/smtpd-demo.XXXXXX")
pid=
finish() {
	if [ -n "$pid" ]; then
		kill "$pid" 2>/dev/null || :
		wait "$pid" 2>/dev/null || :
	fi
	rm -rf "$dir"
}
trap finish EXIT
trap 'exit 1' INT TERM

say() { printf '\n== %s\n' "$*"; }
me=$(id -un)
ln -s "$bin/smtpctl" "$dir/sendmail"

# A free port: the daemon says when one is taken, then the next is tried.
port=2525
while :; do
	"$bin/smtpd" -d --rootless "$dir" -D smtp_port=$port >"$dir/log" 2>&1 &
	pid=$!
	n=0
	while ! "$bin/smtpctl" -s "$dir/smtpd.sock" show status >/dev/null 2>&1; do
		kill -0 "$pid" 2>/dev/null || break
		n=$((n + 1))
		[ $n -lt 100 ] || { cat "$dir/log"; echo "the daemon does not come up"; exit 1; }
		sleep 0.1
	done
	kill -0 "$pid" 2>/dev/null && break
	wait "$pid" 2>/dev/null || :
	pid=
	grep -q 'already in use' "$dir/log" || { cat "$dir/log"; exit 1; }
	port=$((port + 1))
	[ $port -lt 2600 ] || { echo "no free port"; exit 1; }
done
say "smtpd runs as $me on 127.0.0.1 port $port"

say "one mail by SMTP"
bash -c '
	exec 3<>/dev/tcp/127.0.0.1/'$port'
	read -r line <&3; echo "S: $line"
	say() { printf "%s\r\n" "$1" >&3; echo "C: $1"; }
	answer() { while read -r line <&3; do echo "S: $line"; case $line in ???" "*) break ;; esac; done; }
	say "EHLO demo.example"; answer
	say "MAIL FROM:<sender@example.org>"; answer
	say "RCPT TO:<'$me'@localhost>"; answer
	say "DATA"; answer
	say "Subject: one mail by SMTP"
	say ""
	say "It went through every process."
	say "."; answer
	say "QUIT"; answer
'
say "one mail by sendmail"
printf 'Subject: one mail by sendmail\n\nIt was handed in on the local socket.\n' |
	SMTPD_SOCKET=$dir/smtpd.sock "$dir/sendmail" -v "$me@localhost"

n=0
while [ "$(ls "$dir/Maildir/new" 2>/dev/null | wc -l)" -lt 2 ]; do
	n=$((n + 1))
	[ $n -lt 100 ] || { cat "$dir/log"; echo "the mails were not delivered"; exit 1; }
	sleep 0.1
done
say "the log"
cat "$dir/log"
say "smtpctl show queue (empty: both are delivered)"
"$bin/smtpctl" -s "$dir/smtpd.sock" show queue
for f in "$dir"/Maildir/new/*; do
	say "Maildir/new/${f##*/}"
	cat "$f"
done
kill "$pid"
wait "$pid" || { echo "the daemon ended badly"; cat "$dir/log"; exit 1; }
pid=
say "done: both mails were delivered, the daemon has ended"
