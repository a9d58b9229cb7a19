/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The table of allowed system calls, for whoever wants to read it: the tests,
 * and the printed policy. What it says is what the filter does.
 */

#include <stddef.h>
#include <stdint.h>

#include "policy/policy.h"

enum policy_comparison_kind {
	POLICY_ANY = 0, /* no further comparison */
	POLICY_EQUAL,
	POLICY_AT_MOST,
};

struct policy_comparison {
	enum policy_comparison_kind kind;
	unsigned int argument; /* 0 to 5 */
	uint64_t value;	       /* of an address: where it is in this process */
	const char *text;      /* the value as the table has it */
};

#define POLICY_COMPARISONS_MAX 5

/*
 * A call is allowed when all comparisons up to the first POLICY_ANY hold, in one
 * of the rules that the role has for it.
 */
struct policy_rule {
	enum policy_role role;
	const char *call;
	long number; /* on the machine this was built for */
	struct policy_comparison comparisons[POLICY_COMPARISONS_MAX];
	const char *reason;
};

/* The whole table, all roles; static. */
const struct policy_rule *policy_rules(size_t *ret_n_rules);

/*
 * Put the calling thread behind the filter of a role. no_new_privs must be set.
 * 0 or negative errno. Part of policy_enter(); the tests load a filter alone.
 */
int policy_load_filter(enum policy_role role);
