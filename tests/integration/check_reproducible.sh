#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Another build of the same sources, with the same options and the same compiler, installs the same
# bytes: from another path, in a build directory that lies elsewhere to it, with another umask, time
# zone, language and date.
#
#	check_reproducible.sh SOURCE-ROOT BUILD-ROOT COMPILER...
#
# With MUST_WORK=1 in the environment a check that cannot be made is a failure.

set -u

if [ $# -lt 3 ]; then
	echo "usage: $0 SOURCE-ROOT BUILD-ROOT COMPILER..." >&2
	exit 2
fi
source=$1
build=$2
shift 2
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

skip() {
	echo "SKIP: $*"
	[ "${MUST_WORK:-0}" = 1 ] && exit 1
	exit 77
}

fail() {
	echo "FAIL: $1"
	[ $# -lt 2 ] || tail -n 30 "$2"
	exit 1
}

for tool in meson ninja; do
	command -v $tool >"$work/log" || skip "there is no $tool"
done

# What is installed, and nothing of what tests it.
other=$work/of/another/path/with-a-longer-name
mkdir -p "$other"
for room in $(sed -n "s/^ *subdir('\([a-z]*\)')/\1/p" "$source/meson.build"); do
	[ "$room" = tests ] || cp -R "$source/$room" "$other" || fail "cannot copy $room"
done
cp "$source/meson.build" "$source/meson_options.txt" "$other" || fail 'cannot copy'

# The options as they were given, one a line: "buildtype = release".
sed -n '/^\[options\]/,/^\[/s/^\([a-z_:-]*\) = \(.*\)/-D\1=\2/p' \
	"$build/meson-private/cmd_line.txt" | grep -v '^-Dtests=' >"$work/options"

meson install -C "$build" --no-rebuild --quiet --destdir "$work/one" >"$work/log" 2>&1 ||
	fail 'what was built cannot be installed' "$work/log"
(
	umask 077
	export CC="$*" TZ=Asia/Kathmandu LC_ALL=C.UTF-8 SOURCE_DATE_EPOCH=946684800
	export HOME="$work/nobody" USER=nobody LOGNAME=nobody
	unset MAKEFLAGS
	set --
	while read -r option; do
		set -- "$@" "$option"
	done <"$work/options"
	cd "$other" && meson setup "$@" -Dtests=false build && nice ninja -C build &&
		meson install -C build --no-rebuild --quiet --destdir "$work/two"
) >"$work/log" 2>&1 || fail 'the other build fails' "$work/log"

for tree in one two; do
	(cd "$work/$tree" && find . -type f -printf '%p %m\n' | LC_ALL=C sort) >"$work/$tree.list"
done
grep -q 'sbin/vsockd 755$' "$work/one.list" || fail 'vsockd is not installed' "$work/one.list"
diff "$work/one.list" "$work/two.list" >"$work/log" || fail 'other files, or other modes' "$work/log"
diff -r "$work/one" "$work/two" >"$work/log" || fail 'not the same bytes' "$work/log"
for program in $(sed -n 's/ 755$//p' "$work/one.list"); do
	! grep -q -a -F -e "$source" -e "$build" "$work/one/$program" ||
		fail "$program names the directory in which it was built"
done
echo "OK: two builds install the same $(wc -l <"$work/one.list") files"
