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

#define RATE_MAX (UINT64_C(1) << 40)

/* All zero: no limit. */
struct rate {
	uint64_t per_second; /* 0: no limit */
	int64_t tokens;	     /* thousandths of a byte, as time is in thousandths of a second */
	uint64_t filled_at;  /* ms */
	bool is_dry;
};

/*
 * Another limit from that time on, at most RATE_MAX, or 0. The first one finds the bucket
 * full; with each other what was in it stays, as far as there is room.
 */
void rate_limit(struct rate *rate, uint64_t per_second, uint64_t now);

/* What is in it is at most that, as a predecessor left it. */
void rate_set_tokens(struct rate *rate, int64_t tokens);

void rate_fill(struct rate *rate, uint64_t now);

/* So many bytes may pass now; 0 while it is dry, UINT32_MAX without a limit. */
uint32_t rate_room(const struct rate *rate);

/* So many bytes have passed. true when that made it run dry. */
bool rate_take(struct rate *rate, uint32_t len);

/* ms until it is no longer dry; UINT64_MAX when it is not. */
uint64_t rate_wait(const struct rate *rate);
