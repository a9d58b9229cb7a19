/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How many stream bytes may pass in a second, both ways together: a bucket that
 * time fills and bytes empty. Once it is dry nothing passes until a quarter of it
 * is there again, so that bytes go in batches and not one by one. What passes at a
 * time may be more than is left; the debt is waited for. Pure functions on a struct.
 */

#include <stdbool.h>
#include <stdint.h>

struct rate {
	uint64_t per_second; /* 0: no limit */
	int64_t tokens;	     /* thousandths of a byte, as time is in thousandths of a second */
	uint64_t filled_at;  /* ms */
	uint64_t n_dry;	     /* how often it has run dry */
	bool is_dry;
};

/* Full, at that time. per_second: at most 2^40. */
void rate_init(struct rate *rate, uint64_t per_second, uint64_t now);

/* What is in it is at most that, as a predecessor left it. */
void rate_set_tokens(struct rate *rate, int64_t tokens);

void rate_fill(struct rate *rate, uint64_t now);

/* So many bytes may pass now; 0 while it is dry, UINT32_MAX without a limit. */
uint32_t rate_room(const struct rate *rate);

/* So many bytes have passed. true when that made it run dry. */
bool rate_take(struct rate *rate, uint32_t len);

/* ms until it is no longer dry; UINT64_MAX when it is not. */
uint64_t rate_wait(const struct rate *rate);
