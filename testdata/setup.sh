#!/bin/sh
# Installs, when run as root on Debian, the programs that the tests talk to.
# Without root, or without apt, tests that need a missing program say so.
set -eu
need="bash curl dovecot-core dovecot-lmtpd openssl strace swaks libnet-ssleay-perl msmtp s-nail mandoc python3 procps util-linux iproute2 mutt redis-server postgresql mariadb-server-core mariadb-client-core slapd opensmtpd-extras unbound dnsmasq-base"
for p in $need; do dpkg -s "$p" >/dev/null 2>&1 || missing="${missing:-} $p"; done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ ! -d "${PEERS:-/opt/peers}/postfix" ]; then
	"$(dirname "$0")/../bench/peers" >/dev/null || echo "no Postfix and Exim to relay to: the tests that do say so and pass"
fi
[ -n "${missing:-}" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "not installed:${missing}: the tests that use them say so and pass"
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || true
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
for p in $missing; do # one that this release does not have must not keep the others out
	apt-get install -y -qq --no-install-recommends "$p" >/dev/null ||
		echo "could not install $p: the tests that use it say so and pass"
done
