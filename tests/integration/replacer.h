/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * An operator who replaces workers, through the control socket, while a test goes
 * on: in the loop of a guest, one request after the other, or in a process of its
 * own. The setup was started with TOOL_ARGUMENTS (tool.h).
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/integration/setup.h"

struct replacer {
	struct watch watch;
	uint64_t cid;
	uint32_t n_left;	   /* requests still to be sent */
	uint32_t n_good, n_failed; /* as they were answered */
	bool is_asking;
	char failure[256]; /* of the last one that failed */
};

/* n replacements of that VM's worker; answers are taken in guest_poll(). cid 0: all VMs. */
void replacer_start(struct replacer *replacer, struct setup *setup, struct guest *guest,
		    uint64_t cid, uint32_t n);
bool replacer_is_done(const struct replacer *replacer);
/* Ask now for what is left. */
void replacer_end(struct replacer *replacer, struct guest *guest);

/* One, waiting, while the guest is polled. 0, or -1 with the text in replacer_failure. */
int replace_worker(struct setup *setup, struct guest *guest, uint64_t cid);
extern char replacer_failure[256];

/* A child that replaces the workers of all VMs again and again, so many ms apart. */
pid_t replacer_fork(const struct setup *setup, int milliseconds);
