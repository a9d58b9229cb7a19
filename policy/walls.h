/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The single steps of confinement, for use inside policy/ only: policy_enter()
 * and the starters know the order in which they hold.
 */

#include <linux/securebits.h>
#include <stdbool.h>
#include <stdint.h>

#include "policy/policy.h"

/* Uid 0 gets nothing by being uid 0: no capability at an exec, none ambient. */
#define POLICY_SECUREBITS_NO_ROOT                                                                  \
	(SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |                      \
	 SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED)

/* Fill ret_failure; returns -error. */
int policy_fail(struct policy_failure *ret_failure, int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * Lock securebits so that uid 0 means nothing, and empty the bounding set: no
 * exec gives anything back. Needs CAP_SETPCAP, and /proc for libcap-ng. What
 * the process holds it keeps, so mounts can still be made. 0 or negative errno.
 */
int policy_lock_privileges(void);

/* Give up every capability in every set. 0 or negative errno. */
int policy_drop_capabilities(void);

/* Is CAP_x effective in the calling process? Needs /proc. */
bool policy_has_capability(unsigned int capability);

/*
 * Landlock, where the kernel has it: no path, no TCP port, no abstract socket,
 * no signal to the outside. A second layer behind the empty root and the
 * namespaces, so a kernel without it is no failure. Needs no_new_privs.
 */
int policy_restrict_paths(void);
