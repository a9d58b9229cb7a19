#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The units for systemd are well formed, confine vsockd as much as they claim, and
# forbid it no system call that it makes, as far as can be told without systemd as
# process 1.
#
#	check_units.sh VSOCKD WORKER UNIT...
#
# With MUST_WORK=1 in the environment a check that cannot be made is a failure.

set -u
export LC_ALL=C # sort and comm must agree

if [ $# -lt 3 ]; then
	echo "usage: $0 VSOCKD WORKER UNIT..." >&2
	exit 2
fi
vsockd=$(realpath "$1")
worker=$(realpath "$2")
shift 2
work=$(mktemp -d) || exit 1
daemon=
status=0
trap 'if [ -n "$daemon" ]; then kill "$daemon"; wait "$daemon"; fi; rm -rf "$work"' EXIT

# Of systemd-analyze security: 0 is the safest, 10 the least safe. Namespaces and ids for
# workers and what it takes to make them are the most of it.
EXPOSURE_MAX=2.5

complain() {
	echo "FAIL: $*"
	status=1
}

skip() {
	if [ "${MUST_WORK:-0}" = 1 ]; then
		echo "FAIL: $*, and MUST_WORK=1"
		exit 1
	fi
	echo "SKIP: $*"
	exit 77
}

command -v systemd-analyze >"$work/found" || skip 'systemd-analyze is not installed'

for unit in "$@"; do
	# The program is where it will be installed, and not there yet.
	name=$(basename "$unit")
	sed "s|^ExecStart=[^ ]*|ExecStart=$vsockd|" "$unit" >"$work/$name"
	case $name in *@*) instance=$(echo "$name" | sed 's/@/@test/') ;; *) instance=$name ;; esac
	[ "$name" = "$instance" ] || cp "$work/$name" "$work/$instance"
	systemd-analyze --man=no verify "$work/$instance" >"$work/verify" 2>&1
	# Other units of this machine are none of ours.
	grep -F "$name" "$work/verify" >"$work/ours" && complain "$name: $(cat "$work/ours")"
	# Since systemd 250.
	systemd-analyze --help | grep -q -e --offline || continue
	exposure=$(systemd-analyze --no-pager security --offline=true "$work/$instance" |
		sed -n 's/.*exposure level for [^:]*: \([0-9.]*\).*/\1/p')
	[ -n "$exposure" ] || complain "$name: its exposure cannot be told"
	awk "BEGIN { exit !(${exposure:-10} <= $EXPOSURE_MAX) }" ||
		complain "$name: exposure $exposure is above $EXPOSURE_MAX"
	echo "$name: exposure $exposure"
done

[ $status -eq 0 ] || exit $status
command -v strace >"$work/found" || skip 'strace is not installed: what vsockd calls is not known'

# Every call of a filter: groups contain groups.
expand() {
	for call in "$@"; do
		case $call in
		@*) systemd-analyze syscall-filter "$call" |
			sed -n 's/^ *\([@a-z_][a-z0-9_-]*\)$/\1/p' | grep -vx "$call" |
			while read -r inner; do expand "$inner"; done ;;
		*) echo "$call" ;;
		esac
	done
}

sed -n 's/^SystemCallFilter=//p' "$1" | while read -r line; do
	case $line in
	~*) expand ${line#\~} | sort -u | comm -23 "$work/allowed" - >"$work/left" ;;
	*) { [ ! -e "$work/allowed" ] || cat "$work/allowed"; expand $line; } | sort -u >"$work/left" ;;
	esac
	mv "$work/left" "$work/allowed"
done
# What every process may do, by systemd itself.
{ cat "$work/allowed"; expand @default; } | sort -u >"$work/all"

# A line of the log that is there, or comes; tail sees it when grep leaves.
await_log() { # TEXT
	timeout 60 tail -n +1 -f "$work/log" 2>"$work/tail" | grep -q -m 1 -e "$1"
}

: >"$work/log"
printf 'vms: [{socket: %s/vm, uds-path: %s/host}]\n' "$work" "$work" >"$work/vsockd.yaml"
strace -f -qq -o "$work/trace" "$vsockd" --worker "$worker" --config "$work/vsockd.yaml" \
	2>>"$work/log" &
daemon=$!
await_log 'ready: 1 VM' || { cat "$work/log"; complain 'vsockd does not start'; }
pid=$(pgrep -P "$daemon" -x vsockd)
kill -HUP "$pid"
await_log 'reload: 0 added' || complain 'vsockd does not reload'
kill "$pid"
wait "$daemon"
daemon=
sed -n 's/^[0-9]* *\([a-z][a-z0-9_]*\)(.*/\1/p' "$work/trace" | sort -u >"$work/made"
[ "$(wc -l <"$work/made")" -gt 30 ] || complain 'nothing was traced'
for call in $(comm -23 "$work/made" "$work/all"); do
	complain "$call is called, but the SystemCallFilter of $1 has it not"
done
[ $status -eq 0 ] && echo "OK: $(wc -l <"$work/made") system calls are in the filter of $(wc -l <"$work/all")"
exit $status
