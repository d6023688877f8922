#!/usr/bin/env bash
# peer.sh NAME PORT DIR: run the mail server that bench/systems/NAME describes
# on a port of its own, Postfix and Exim with STARTTLS; it takes everything, but
# see below, and keeps it below
# DIR/sys/spool. With PORT list: print its texts. For private name spaces only.
set -u
NAME=$1 PORT=$2 SYS_DIR=$3/sys CERTS=$3 SINK_PORT=9 SYS_WRAP= BENCH=$(cd "$(dirname "$0")/../../../bench" && pwd)
EXIM_PREFIX=${EXIM_PREFIX:-/opt/peers/exim4-daemon-light}
. "$BENCH/systems/$NAME"
sys_available || { echo "not available"; exit 3; }
if [ "$PORT" = list ]; then
	case $NAME in
	postfix) find "$SYS_DIR/spool/hold" -type f -exec "$PF/usr/sbin/postcat" -c "$SYS_DIR/etc" -bh {} \; ;;
	exim) find "$SYS_DIR/spool/input" -name '*-H' | while read -r h; do sed -n '/^$/,$s/^[0-9]*[A-Z* ] //p' "$h"; echo; tail -n +2 "${h%-H}-D"; done ;;
	*) find "$SYS_DIR/spool" -name message -exec cat {} \; ;;
	esac
	exit
fi
for u in postfix:64301 Debian-exim:64302 opensmtpd:64303 opensmtpq:64304; do
	n=${u#*:} u=${u%:*}
	grep -q "^$u:" /etc/passwd || echo "$u:x:$n:$n::/var/empty:/usr/sbin/nologin" >>/etc/passwd
	grep -q "^$u:" /etc/group || echo "$u:x:$n:" >>/etc/group
done
grep -q '^postdrop:' /etc/group || echo 'postdrop:x:64305:' >>/etc/group
mkdir -p "$SYS_DIR"
chmod 755 "$3" "$SYS_DIR"
case $NAME in
opensmtpd*)
	mount -t tmpfs tmpfs /run
	sys_setup hold ;;
*) sys_setup tls-rsa ;;
esac
# Exim also refuses: recipients 5... and 4..., and mail whose Subject says so.
[ "$NAME" != exim ] || {
	sed -i 's/^\(acl_smtp_rcpt\|acl_smtp_data\) = accept/\1 = \1/' "$SYS_DIR/exim.conf"
	cat >>"$SYS_DIR/exim.conf" <<-'EOF'
	begin acl
	acl_smtp_rcpt:
	  deny local_parts = ^5
	    message = no such person here
	  defer local_parts = ^4
	    message = come back later
	  accept
	acl_smtp_data:
	  deny condition = ${if eq{$h_Subject:}{refuse}}
	    message = not this text
	  defer condition = ${if eq{$h_Subject:}{defer}}
	    message = not now
	  accept
	EOF
}
sys_exec
