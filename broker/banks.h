/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What of the configuration the front has to know, in memory that spawner and
 * front share since the fork, at the same address: so a reload needs no message
 * for each setting, and no heap in the front. The spawner fills one bank while the
 * front reads the other one, and says when to change over; the front says when it
 * has, and only then the first bank is filled again. The front cannot write there.
 *
 * In a bank as in the running configuration a VM has its place, which is the
 * index of its device: vms[i] for i < n_vms; a place without a VM has guest_cid 0.
 */

#include "broker/configuration.h"

#define BANKS 2

/* Each VM may be exchanged for another in one reload; both have a place meanwhile. */
#define BANK_PLACES (2 * CONFIGURATION_VMS_MAX)

struct bank;

/* What is said of a reload: a line for each VM that came, went or changed, and some more. */
#define BANKS_TEXT_SIZE ((size_t)32 << 10)

struct banks {
	struct bank *all[BANKS];
	char *text; /* of the last reload that the front asked for, as logged; BANKS_TEXT_SIZE */
};

/* Before the fork. 0 or negative errno. */
int banks_init(struct banks *banks);

/* In the front, before it is confined: from now on it reads only. 0 or negative errno. */
int banks_protect(const struct banks *banks);

/* A copy of all that the front uses; -ENOSPC if it has no room there. */
int banks_fill(const struct banks *banks, unsigned int bank,
	       const struct configuration *configuration);

const struct configuration *banks_get(const struct banks *banks, unsigned int bank);
