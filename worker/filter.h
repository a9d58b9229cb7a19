/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Ports of the guest at which host programs may ask: what is denied is denied; where
 * any are allowed, no others are. A new list comes range by range and holds when the
 * last one is there, so nobody is judged by half a list. Pure functions on a struct.
 */

#include <stdbool.h>
#include <stdint.h>

/* As many as the front may send: 64 of each kind. */
#define FILTER_RANGES_MAX 128

struct filter_range {
	uint32_t first, last;
	bool is_denied;
};

struct filter_list {
	struct filter_range ranges[FILTER_RANGES_MAX];
	uint32_t n_ranges;
};

/* All zero: every port passes. */
struct filter {
	struct filter_list current, next;
	uint32_t n_awaited; /* ranges of next, in all */
};

/* A list of so many ranges comes. false: there can't be so many. */
bool filter_begin(struct filter *filter, uint32_t n_ranges);

/* The next one of them. false: it is one too many. */
bool filter_add(struct filter *filter, const struct filter_range *range);

bool filter_passes(const struct filter *filter, uint32_t port);
