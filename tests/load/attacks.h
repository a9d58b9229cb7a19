/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Guests and host programs that take what they can get, each in a process of its own, as
 * long as it lives: to see what their neighbour has left.
 */

#include <sys/types.h>

#include "tests/integration/setup.h"

struct attack {
	const char *name;
	void (*run)(struct setup *setup); /* never returns while it can go on */
};

/* By VMs 1 and 2. Ends with an entry without a name. */
extern const struct attack attacks[];

/* The process, once the attack is on its way. */
pid_t attack_start(struct setup *setup, const struct attack *attack);
void attack_end(pid_t pid);
