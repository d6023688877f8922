#!/bin/sh
# Installs, when run as root on Debian, the programs that the tests talk to.
# Without root, or without apt, tests that need a missing program say so.
set -eu
need="bash curl strace swaks msmtp s-nail mandoc python3 procps util-linux iproute2 redis-server postgresql opensmtpd-extras"
for p in $need; do dpkg -s "$p" >/dev/null 2>&1 || missing="${missing:-} $p"; done
[ -n "${missing:-}" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "not installed:${missing}: the tests that use them say so and pass"
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
	echo "could not install all of:${missing}: the tests that use them say so and pass"
