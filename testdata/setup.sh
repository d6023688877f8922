#!/bin/sh
# Installs, when run as root on Debian, the programs that the tests talk to.
# Without root, or without apt, tests that need a missing program say so.
set -eu
need="bash bsdutils btrfs-progs curl dovecot-core dovecot-lmtpd e2fsprogs openssl popa3d courier-imap procmail strace swaks libnet-ssleay-perl msmtp s-nail mandoc python3 procps util-linux iproute2 mutt redis-server postgresql mariadb-server-core mariadb-client-core slapd opensmtpd-extras unbound dnsmasq-base opensmtpd-filter-dkimsign python3-dkim opensmtpd-filter-senderscore opensmtpd-filter-rspamd rspamd xfsprogs"
# readers unpacks packages that do not go together with another reader's.
readers() {
	for p in dovecot-imapd dovecot-pop3d; do
		dpkg -s "$p" >/dev/null 2>&1 && continue
		[ ! -e "/opt/readers/$p" ] || continue
		mkdir -p /opt/readers
		(d=$(mktemp -d) && chmod 755 "$d" && cd "$d" && apt-get download -qq "$p" >/dev/null 2>&1 && dpkg -x ./*.deb /opt/readers &&
			touch "/opt/readers/$p" && rm -rf "$d") || echo "could not unpack $p: the tests that use it say so and pass"
	done
}
for p in $need; do dpkg -s "$p" >/dev/null 2>&1 || missing="${missing:-} $p"; done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ ! -d "${PEERS:-/opt/peers}/postfix" ]; then
	"$(dirname "$0")/../bench/peers" >/dev/null || echo "no Postfix and Exim to relay to: the tests that do say so and pass"
fi
if [ -z "${missing:-}" ]; then
	[ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || readers
	exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "not installed:${missing}: the tests that use them say so and pass"
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || true
readers
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
for p in $missing; do # one that this release does not have must not keep the others out
	apt-get install -y -qq --no-install-recommends "$p" >/dev/null ||
		echo "could not install $p: the tests that use it say so and pass"
done
