#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# How the programs are built: what the compiler and the linker can do against
# attackers is in them, and the worker has nothing of the broker.
#
#	check_binaries.sh VSOCKD VSOCKD-WORKER [VSOCKD-EXPORTER]
#
# OPTIMIZATION in the environment is meson's option; a build without any has less.
# Exit status 77: skipped, with the reason.

set -u

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
	echo "usage: $0 VSOCKD VSOCKD-WORKER [VSOCKD-EXPORTER]" >&2
	exit 2
fi
vsockd=$1
worker=$2
exporter=${3:-}
status=0
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
export LC_ALL=C

complain() {
	echo "FAIL: $*"
	status=1
}

skip() {
	if [ "${MUST_WORK:-0}" = 1 ]; then
		echo "FAIL: $*"
		exit 1
	fi
	echo "SKIP: $*"
	exit 77
}

for tool in readelf nm objdump; do
	command -v $tool >"$work/tool" || skip "there is no $tool"
done

# imports PROGRAM: the functions that it takes from shared libraries, without versions
imports() {
	nm -D --undefined-only "$1" | awk '{ print $NF }' | sed 's/@.*//'
}

# A program of a sanitizer is not what anybody runs.
if imports "$vsockd" | grep -q '^__[a-z]*san_'; then
	echo "SKIP: a build with sanitizers, for tests"
	exit 77
fi

# has_ibt FILE: does it say that indirect jumps only go where they may?
has_ibt() {
	readelf -nW "$1" 2>/dev/null | grep -q 'x86 feature:.*IBT'
}

# The linker keeps the mark only if each object has it, the C library's own ones too.
tool_chain_has_ibt() {
	for object in Scrt1.o crti.o crtbeginS.o crtendS.o crtn.o; do
		has_ibt "$("${CC:-cc}" -print-file-name=$object)" || return 1
	done
}

check_jumps() {
	has_ibt "$1" && return
	if tool_chain_has_ibt; then
		complain "$1 has no IBT mark, although the C library has"
	elif [ "$(objdump -d "$1" | grep -c endbr64)" -lt 10 ]; then
		complain "$1 has no landing places for indirect jumps: -fcf-protection"
	else
		echo "NOTE: $1 has no IBT mark, as this C library's start files have none"
	fi
}

check_program() {
	program=$1
	readelf -hW "$program" >"$work/header"
	readelf -lW "$program" >"$work/segments"
	readelf -dW "$program" >"$work/dynamic"
	imports "$program" >"$work/imports"

	grep -q 'Type:.*DYN' "$work/header" && grep -q INTERP "$work/segments" ||
		complain "$program is not position-independent"
	grep -q GNU_RELRO "$work/segments" && grep -q -e BIND_NOW -e 'Flags:.*NOW' "$work/dynamic" ||
		complain "$program can be written to where its calls are resolved: no full RELRO"
	grep -q GNU_STACK "$work/segments" || complain "$program does not say what its stack is"
	if grep GNU_STACK "$work/segments" | grep -q 'E  *0x'; then
		complain "$program has an executable stack"
	fi
	if grep LOAD "$work/segments" | grep -q RWE; then
		complain "$program has memory that is writable and executable"
	fi
	if grep -q -e TEXTREL -e RPATH -e RUNPATH "$work/dynamic"; then
		complain "$program has text relocations, or a path of its own to libraries"
	fi
	grep -q '^__stack_chk_fail$' "$work/imports" || complain "$program has no stack protector"
	case ${OPTIMIZATION:-2} in
	0 | plain) echo "NOTE: not optimized, so without _FORTIFY_SOURCE: not for use" ;;
	*) grep -q '_chk$' "$work/imports" ||
		complain "$program was built without _FORTIFY_SOURCE" ;;
	esac
	if grep -q X86-64 "$work/header"; then
		check_jumps "$program"
	fi
}

# Names that begin like this are the broker's; each is looked for in vsockd too, to be sure.
broker_prefixes='configuration endpoints front frontend listener log processes session spawner
	sync vhost_user workers'

check_worker_symbols() {
	nm "$worker" 2>/dev/null | awk '{ print $NF }' >"$work/worker"
	nm "$vsockd" 2>/dev/null | awk '{ print $NF }' >"$work/vsockd"
	[ -s "$work/worker" ] && [ -s "$work/vsockd" ] || skip "the programs have no symbols"
	for prefix in $broker_prefixes; do
		grep -q "^${prefix}_" "$work/vsockd" ||
			complain "no name of vsockd begins with ${prefix}_ any more: mend $0"
		if grep "^${prefix}_" "$work/worker"; then
			complain "the worker has these names of the broker"
		fi
	done
}

# What only the spawner does, or nobody. The calls to build the walls have to be there.
forbidden='socket socketpair connect bind listen accept accept4 open open64 openat openat64 creat
	fopen fopen64 freopen freopen64 fdopen opendir fork vfork clone execve execv execvp execvpe
	execl execle execlp execveat fexecve posix_spawn posix_spawnp system popen dlopen dlsym
	pthread_create mprotect ptrace process_vm_readv process_vm_writev kill unlink rename chmod
	chown memfd_create shm_open getaddrinfo getpwnam getenv'

check_worker_imports() {
	imports "$worker" >"$work/imports"
	for call in $forbidden; do
		if grep -x -e "$call" -e "__${call}_2" -e "__${call}_chk" "$work/imports"; then
			complain "the worker could call this"
		fi
	done
	# The list means something: vsockd does such things.
	imports "$vsockd" | grep -q -x socket || complain "vsockd calls no socket(): mend $0"
}

check_program "$vsockd"
check_program "$worker"
[ -z "$exporter" ] || check_program "$exporter"
check_worker_symbols
check_worker_imports
[ $status -eq 0 ] && echo "OK: $vsockd and $worker"
exit $status
