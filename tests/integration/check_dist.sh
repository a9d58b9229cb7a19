#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What others read of vsockd is what they expect: the descriptor for management programs,
# and the AppArmor profile.
#
#	check_dist.sh VSOCKD DESCRIPTOR SOURCE-ROOT
#
# With MUST_WORK=1 in the environment a check that cannot be made is a failure.

set -u

if [ $# -ne 3 ]; then
	echo "usage: $0 VSOCKD DESCRIPTOR SOURCE-ROOT" >&2
	exit 2
fi
vsockd=$1
descriptor=$2
profile=$3/dist/apparmor/usr.sbin.vsockd
status=0
missing=

complain() {
	echo "FAIL: $*"
	status=1
}

# The type is what the program says of itself.
type=$("$vsockd" --print-capabilities | sed -n 's/.*"type": *"\([a-z]*\)".*/\1/p')
grep -q "\"type\": \"$type\"" "$descriptor" || complain "$descriptor is of another type than $type"
grep -q '"binary": "/.*/vsockd"' "$descriptor" || complain "$descriptor names no program"
if command -v python3 >/dev/null; then
	python3 -m json.tool "$descriptor" >/dev/null || complain "$descriptor is no JSON"
else
	missing='python3'
fi

parser=$(PATH=$PATH:/usr/sbin:/sbin command -v apparmor_parser)
if [ -n "$parser" ]; then
	"$parser" --skip-kernel-load --skip-cache --quiet "$profile" 2>&1 ||
		complain "$profile is refused"
else
	missing="$missing apparmor_parser"
fi

[ $status -eq 0 ] || exit $status
if [ -n "$missing" ]; then
	echo "SKIP: not installed: $missing"
	[ "${MUST_WORK:-0}" = 1 ] && exit 1
	exit 77
fi
echo "OK: descriptor and profile are well formed"
