/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the sandbox tests share. Each runs as whoever starts it and, when that
 * is root, a second time as an ordinary user: the two take different paths
 * through the starters. With MUST_WORK=1 a host that can't do it is a failure.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "policy/policy.h"
#include "policy/rules.h"

#define SANDBOX_ORDINARY_USER 65534
#define SANDBOX_SECONDS	      20 /* for anything that is waited for */

/* Skip the running test, or fail it under MUST_WORK. */
void sandbox_skip(const char *reason);

/* Are user namespaces allowed to this user? */
bool sandbox_has_namespaces(void);

/* Run the tests as root and as an ordinary user; the exit code of main(). */
int sandbox_run_as_both(int (*run)(void));

/* Arguments that every comparison of the rule accepts, and no call can do harm with. */
void sandbox_allowed_arguments(const struct policy_rule *rule, long ret_arguments[6]);

/*
 * Make one call in a fresh process behind the role's filter, and nothing but
 * the filter. Returns its wait status. is_32_bit: by int 0x80, on x86-64 only.
 */
int sandbox_call(enum policy_role role, long number, const long arguments[6], bool is_32_bit);

bool sandbox_was_refused(int wait_status);
