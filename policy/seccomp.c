/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/rules.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * One comparison covers a whole argument only where a register has 64 bits,
 * and each further architecture wants the sweep test to be run on it first.
 */
#if !defined(__x86_64__) && !defined(__aarch64__)
#error "the system-call policy is written for x86-64 and aarch64"
#endif
#ifdef __ILP32__
#error "the system-call policy is written for 64-bit system calls"
#endif

/* clang-format off */
#define ANY {POLICY_ANY, 0, 0, ""}
#define EQ(n, v) {POLICY_EQUAL, n, v, #v}
#define LE(n, v) {POLICY_AT_MOST, n, v, #v}
#define AT(n, object) {POLICY_EQUAL, n, (uintptr_t)(object), "address of " #object}
#define ALL(...) __VA_ARGS__
#define RULE(role, call, arguments, reason) {POLICY_##role, #call, SYS_##call, {arguments}, reason},
/* clang-format on */

const char policy_empty_path[1] = "";
const struct msghdr policy_empty_message[1];

static const struct policy_rule rules[] = {
#include "policy/syscalls.def"
};

const struct policy_rule *policy_rules(size_t *ret_n_rules)
{
	*ret_n_rules = sizeof(rules) / sizeof(rules[0]);
	return rules;
}

static int add_rule(scmp_filter_ctx filter, const struct policy_rule *rule)
{
	struct scmp_arg_cmp comparisons[POLICY_COMPARISONS_MAX];
	unsigned int n = 0;

	while (n < POLICY_COMPARISONS_MAX && rule->comparisons[n].kind != POLICY_ANY) {
		const struct policy_comparison *comparison = &rule->comparisons[n];

		comparisons[n++] = (struct scmp_arg_cmp){
			.arg = comparison->argument,
			.op = comparison->kind == POLICY_EQUAL ? SCMP_CMP_EQ : SCMP_CMP_LE,
			.datum_a = comparison->value,
		};
	}
	/* The exact variant refuses rather than adapts what it can't express. */
	return seccomp_rule_add_exact_array(filter, SCMP_ACT_ALLOW, (int)rule->number, n,
					    comparisons);
}

static int fill_filter(scmp_filter_ctx filter, enum policy_role role)
{
	/* The native architecture only: x32 and 32-bit calls meet BADARCH. */
	int status = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);

	/* Level 2 looks a call up in a tree rather than down a list. */
	if (!status)
		status = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	/* Without this a refusal by the kernel is hidden behind ECANCELED. */
	if (!status)
		status = seccomp_attr_set(filter, SCMP_FLTATR_API_SYSRAWRC, 1);

	for (size_t i = 0; !status && i < sizeof(rules) / sizeof(rules[0]); i++) {
		if (rules[i].role == role)
			status = add_rule(filter, &rules[i]);
	}
	return status;
}

int policy_load_filter(enum policy_role role)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int status;

	if (!filter)
		return -ENOMEM;
	status = fill_filter(filter, role);
	if (!status)
		status = seccomp_load(filter);

	/* Frees memory; must not need a call that the filter refuses by now. */
	if (status)
		seccomp_release(filter);
	return status;
}
