#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The manual pages, README.md, --help and --print-policy say the same, and the
# manual pages are well formed.
#
#	check_documents.sh VSOCKD VSOCKCTL SOURCE-ROOT
#
# With MUST_WORK=1 in the environment a check that cannot be made is a failure.

set -u

if [ $# -ne 3 ]; then
	echo "usage: $0 VSOCKD VSOCKCTL SOURCE-ROOT" >&2
	exit 2
fi
vsockd=$1
vsockctl=$2
root=$3
page=$root/man/vsockd.8
sandbox_page=$root/man/vsockd-sandbox.7
readme=$root/README.md
status=0
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

complain() {
	echo "FAIL: $*"
	status=1
}

# Each option of the first list that the second one lacks.
compare() {
	for option in $(comm -23 "$1" "$2"); do
		complain "$option $3"
	done
}

if ! "$vsockd" --help >"$work/help" || [ ! -s "$work/help" ]; then
	echo "FAIL: $vsockd --help gives no text"
	exit 1
fi
if [ ! -r "$page" ]; then
	echo "FAIL: $page cannot be read"
	exit 1
fi

if awk 'length($0) > 80 { print; found = 1 } END { exit !found }' "$work/help"; then
	complain "--help is wider than 80 columns"
fi

grep -o -e '--[a-z][a-z-]*' "$work/help" | LC_ALL=C sort -u >"$work/in_help"

# What OPTIONS explains, and what any section names; COMPATIBILITY names options of others.
awk '/^\.Sh / { section = $2 } section == "OPTIONS" && /^\.It Fl -/' "$page" |
	grep -o 'Fl -[a-z][a-z-]*' | sed 's/^Fl /-/' | LC_ALL=C sort -u >"$work/in_page"
awk '/^\.Sh / { section = $2 } section != "COMPATIBILITY"' "$page" |
	grep -o 'Fl -[a-z][a-z-]*' | sed 's/^Fl /-/' | LC_ALL=C sort -u >"$work/named"

if [ ! -s "$work/in_help" ] || [ ! -s "$work/in_page" ]; then
	complain "no options were found in --help or in $page"
fi
compare "$work/in_help" "$work/in_page" "stands in --help, but not in OPTIONS of $page"
compare "$work/in_page" "$work/in_help" "stands in OPTIONS of $page, but not in --help"
compare "$work/named" "$work/in_help" "is named in $page, but does not stand in --help"

# The keys of the configuration file, which a wrong one is answered with, and as its page has them.
file_page=$root/man/vsockd.yaml.5
check_keys() { # FILE-WITH-A-WRONG-KEY TITLE-IN-THE-PAGE
	printf '%s\n' "$1" >"$work/wrong.yaml"
	"$vsockd" --check-config "$work/wrong.yaml" 2>&1 | sed -n 's/.* known are //p' |
		tr -d ' ' | tr ',' '\n' | LC_ALL=C sort >"$work/known"
	awk -v title="$2" '/^\.S[hs] / { section = substr($0, 5) } section == title &&
		/^\.It Cm / { print $3 }' "$file_page" | LC_ALL=C sort >"$work/in_page"
	[ -s "$work/known" ] || complain "no key is known where $file_page has \"$2\""
	compare "$work/known" "$work/in_page" "is a key, but does not stand in \"$2\" of $file_page"
	compare "$work/in_page" "$work/known" "stands in \"$2\" of $file_page, but is no key"
}

check_keys 'xxxxxxxxxxxx: 1' 'Keys for all VMs'
check_keys 'vms: [{xxxxxxxxxxxx: 1}]' 'Keys of a VM'

# vsockctl add takes them all.
for completion in "$root"/dist/completion/*; do
	for key in $(grep -vx guest-cid "$work/known"); do
		grep -q -e "[ '	]$key=" "$completion" || complain "$completion does not complete add's $key="
	done
done

# The commands of vsockctl and their arguments, and its options, as --help and the page have them.
ctl_page=$root/man/vsockctl.1
"$vsockctl" --help >"$work/help" || complain "$vsockctl --help fails"
if awk 'length($0) > 80 { print; found = 1 } END { exit !found }' "$work/help"; then
	complain "vsockctl --help is wider than 80 columns"
fi
sed -n '/^Commands:/,/^$/s/^  \([a-z][a-z-]*\) .*/\1/p' "$work/help" | LC_ALL=C sort >"$work/in_help"
awk '/^\.Sh / { section = $2 } section == "COMMANDS" && /^\.It Cm / { print $3 }' "$ctl_page" |
	LC_ALL=C sort -u >"$work/in_page"
[ -s "$work/in_help" ] || complain "no commands were found in vsockctl --help"
compare "$work/in_help" "$work/in_page" "stands in vsockctl --help, but not in COMMANDS of $ctl_page"
compare "$work/in_page" "$work/in_help" "stands in COMMANDS of $ctl_page, but not in vsockctl --help"
for completion in "$root"/dist/completion/*; do
	for command in $(cat "$work/in_help"); do
		grep -q "[ :'\"]*\<$command\>" "$completion" ||
			complain "$completion does not complete $command"
	done
done
# Those who have no such shell cannot be hurt by what is wrong for it.
for shell in zsh fish; do
	command -v $shell >"$work/shell" || continue
	file=_vsockctl
	[ $shell = zsh ] || file=vsockctl.fish
	$shell -n "$root/dist/completion/$file" ||
		complain "$shell does not understand its completion"
done
completed=$(bash -c '. "$1"; COMP_WORDS=(vsockctl --json stat); COMP_CWORD=2; _vsockctl
	echo "${COMPREPLY[*]}"' - "$root/dist/completion/vsockctl.bash" 2>&1)
[ "$completed" = status ] || complain "the completion for bash makes of stat: $completed"
grep -o -e '--[a-z][a-z-]*' "$work/help" | LC_ALL=C sort -u >"$work/in_help"
awk '/^\.Sh / { section = $2 } section == "DESCRIPTION" && /^\.It Fl -/' "$ctl_page" |
	grep -o 'Fl -[a-z][a-z-]*' | sed 's/^Fl /-/' | LC_ALL=C sort -u >"$work/in_page"
compare "$work/in_help" "$work/in_page" "stands in vsockctl --help, but not in $ctl_page"
compare "$work/in_page" "$work/in_help" "stands in $ctl_page, but not in vsockctl --help"

for metric in $(grep -o '"vsockd_[a-z_]*",' "$root/broker/metrics.c" | tr -d '",' | sort -u); do
	grep -q "Cm.* $metric\(_total\)\{0,1\}\( \|$\)" "$ctl_page" ||
		complain "$metric is a metric, but not explained in $ctl_page"
done

for metric in $(grep -oh 'vsockd_[a-z_]*' "$root"/dist/monitoring/* | LC_ALL=C sort -u); do
	grep -q "\"$(echo "$metric" | sed 's/_total$//; s/_bucket$//')\"" "$root/broker/metrics.c" ||
		complain "$metric is used in dist/monitoring, but is no metric"
done

# Of a role: the calls that are printed, those that the page lists, and the number that each gives.
# Machines without epoll_wait() have epoll_pwait() in its place, as the page says.
check_role() {
	if ! "$vsockd" --print-policy "$1" >"$work/policy"; then
		complain "$vsockd --print-policy $1 fails"
		return
	fi
	sed -n 's/^\([a-z][a-z0-9_]*\) .*/\1/p' "$work/policy" |
		sed 's/^epoll_pwait$/epoll_wait/' | LC_ALL=C sort -u >"$work/printed"
	awk -v title="$2" '/^\.S[hs] / { section = $2 } section == title && /^\.It Ic / { print $3 }' \
		"$sandbox_page" | LC_ALL=C sort >"$work/listed"
	for call in $(comm -23 "$work/printed" "$work/listed"); do
		complain "$1: $call is allowed, but not listed in $sandbox_page"
	done
	for call in $(comm -13 "$work/printed" "$work/listed"); do
		complain "$1: $call is listed in $sandbox_page, but not allowed"
	done
	count=$(tail -n 1 "$work/policy")
	[ "$count" = "$(wc -l <"$work/printed" | tr -d ' ') system calls" ] ||
		complain "--print-policy $1 lists another number of calls than its last line gives"
	awk -v title="$2" '/^\.S[hs] / { section = $2 } section == title' "$sandbox_page" |
		grep -q "^$count:" || complain "$sandbox_page does not say \"$count\" of the $1"
	grep -q "[^0-9]$count" "$readme" || complain "$readme does not say \"$count\" of the $1"
	echo "$count" >>"$work/counts"
}

check_role front Front
check_role worker Worker
check_role exporter Exporter
# And no other number stands there either.
for count in $(grep -o '[0-9][0-9]* system calls' "$readme" "$root"/man/*.[1-9] |
	sed 's/.*:\([0-9]*\) .*/\1/' | sort -u); do
	grep -q "^$count system calls" "$work/counts" ||
		complain "\"$count system calls\" stands in a document, but no role has that many"
done

for test in $(grep -o 'tests/[a-z_/]*\.[a-z]*' "$sandbox_page" | sort -u); do
	[ -e "$root/$test" ] || complain "$sandbox_page names $test, which does not exist"
done

# Messages of a worker with the number of their fds, and requests to the spawner.
ipc_page=$root/man/vsockd-ipc.7
tr -d '\n' <"$root/ipc/message.c" | grep -oE '(RULE|COMMAND)\([A-Z_]*,[^)]*\)' |
	sed -n 's/.*"\([A-Za-z]*\)".*,[ 	]*\([01]\), \([01]\))$/\1 \2 \3/p' |
	sed 's/ 0 0$//; s/ 1 1$/ 1/; s/ 0 1$/ 0 or 1/' | LC_ALL=C sort >"$work/sent"
awk '/^\.Sh / { section = substr($0, 5) }
	section == "THE FRONT AND A WORKER" && /^\.It Ic / { print substr($0, 5) }' "$ipc_page" |
	sed 's/ , /\n/g' | sed 's/^Ic //; s/ Pq / /' | LC_ALL=C sort >"$work/in_page"
[ -s "$work/sent" ] || complain "no messages were found in ipc/message.c"
diff "$work/sent" "$work/in_page" >"$work/difference" ||
	complain "messages and their fds: ipc/message.c (<) and $ipc_page (>) differ:
$(cat "$work/difference")"
sed -n '/^enum spawner_request_kind {/,/^}/s/^	SPAWNER_\([A-Z_]*\) = .*/\1/p' \
	"$root/broker/spawner.h" | LC_ALL=C sort >"$work/sent"
awk '/^\.Sh / { section = substr($0, 5) }
	section == "THE FRONT AND THE SPAWNER" && /^\.It Ic / { print $3 }' "$ipc_page" |
	LC_ALL=C sort >"$work/in_page"
[ -s "$work/sent" ] || complain "no requests were found in broker/spawner.h"
compare "$work/sent" "$work/in_page" "is a request to the spawner, but not in $ipc_page"
compare "$work/in_page" "$work/sent" "stands in $ipc_page, but is no request to the spawner"

# The ids of events in the journal.
sed -n 's/^	\[LOG_ID_[A-Z_]*\] = "\([0-9a-f]*\)",/\1/p' "$root/broker/log.c" | LC_ALL=C sort >"$work/sent"
sed -n 's/^\.It Li \([0-9a-f]\{32\}\)$/\1/p' "$page" | LC_ALL=C sort >"$work/in_page"
[ -s "$work/sent" ] || complain "no ids of events were found in broker/log.c"
compare "$work/sent" "$work/in_page" "is a MESSAGE_ID, but not in $page"
compare "$work/in_page" "$work/sent" "stands in $page, but is no MESSAGE_ID"
# What the table beside the others promises has tests that show it, and what has tests is promised.
features=$root/tests/integration/features
awk '/^## / { section = $0 } section == "## Beside the others" && /^\| [^-|]/ {
	sub(/^\| */, ""); sub(/ *\|.*/, ""); print }' "$readme" | LC_ALL=C sort >"$work/promised"
grep -v -e '^#' -e '^	' "$features" | LC_ALL=C sort >"$work/shown"
[ -s "$work/promised" ] || complain "no table of features was found in $readme"
comm -23 "$work/promised" "$work/shown" >"$work/difference"
[ -s "$work/difference" ] &&
	complain "$features names no test for: $(cat "$work/difference")"
comm -13 "$work/promised" "$work/shown" >"$work/difference"
[ -s "$work/difference" ] &&
	complain "$features has tests for what is not in the table: $(cat "$work/difference")"
awk '/^	/ { n++ } !/^[	#]/ { if (line && !n) print line; line = $0; n = 0 }
	END { if (!n) print line }' "$features" >"$work/difference"
[ -s "$work/difference" ] && complain "$features has no test behind: $(cat "$work/difference")"
sed -n 's/^	//p' "$features" | while read -r file test; do
	grep -q "^static void $test(" "$root/$file" && grep -q "[(	 ]${test}[,)]" "$root/$file" ||
		echo "$file: $test"
done >"$work/difference"
[ -s "$work/difference" ] &&
	complain "$features names tests that are not there: $(cat "$work/difference")"

for each in "$root"/man/*.[1-9]; do
	grep -q "'${each##*/}'" "$root/man/meson.build" || complain "$each is not installed"
done

if command -v mandoc >"$work/mandoc"; then
	# Which other manual pages are installed here says nothing about these.
	mandoc -T lint "$root"/man/*.[1-9] 2>&1 |
		grep -v -e 'referenced manual not found' -e 'outdated mandoc.db' >"$work/lint"
	if [ -s "$work/lint" ]; then
		cat "$work/lint"
		complain "mandoc -T lint has something to say"
	fi
elif [ "${MUST_WORK:-0}" = 1 ]; then
	complain "mandoc is not installed, and MUST_WORK=1"
else
	echo "SKIP: lint of the manual pages: mandoc is not installed"
fi

[ $status -eq 0 ] && echo "OK: options, commands and the calls of all roles agree"
exit $status
