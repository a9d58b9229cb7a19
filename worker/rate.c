/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/rate.h"

/* It holds what passes in so long a time, and a packet in any case. */
#define BURST_MS	125
#define BURST_BYTES_MIN (64u * 1024)

/* More than any round of packets, and far from where numbers end. */
#define DEBT_MAX (-(INT64_C(1) << 60))

static int64_t burst(const struct rate *rate)
{
	uint64_t bytes = rate->per_second * BURST_MS / 1000;

	return (int64_t)(bytes > BURST_BYTES_MIN ? bytes : BURST_BYTES_MIN) * 1000;
}

void rate_limit(struct rate *rate, uint64_t per_second, uint64_t now)
{
	bool had_none = rate->per_second == 0;

	rate_fill(rate, now);
	rate->per_second = per_second;
	if (had_none || rate->tokens > burst(rate))
		rate->tokens = burst(rate);
	if (per_second == 0 || rate->tokens >= burst(rate) / 4)
		rate->is_dry = false;
}

void rate_set_tokens(struct rate *rate, int64_t tokens)
{
	if (rate->per_second == 0)
		return;
	if (tokens < DEBT_MAX)
		tokens = DEBT_MAX;
	if (tokens < rate->tokens)
		rate->tokens = tokens;
	rate->is_dry = rate->tokens < burst(rate) / 4;
}

void rate_fill(struct rate *rate, uint64_t now)
{
	uint64_t passed = now - rate->filled_at;

	rate->filled_at = now;
	if (rate->per_second == 0)
		return;
	/* A debt is never more than a round of packets: minutes fill any bucket. */
	if (passed > 3600 * 1000)
		passed = 3600 * 1000;
	rate->tokens += (int64_t)(rate->per_second * passed);
	if (rate->tokens > burst(rate))
		rate->tokens = burst(rate);
	if (rate->tokens >= burst(rate) / 4)
		rate->is_dry = false;
}

uint32_t rate_room(const struct rate *rate)
{
	if (rate->per_second == 0)
		return UINT32_MAX;
	if (rate->is_dry)
		return 0;
	return rate->tokens / 1000 < UINT32_MAX ? (uint32_t)(rate->tokens / 1000) : UINT32_MAX;
}

bool rate_take(struct rate *rate, uint32_t len)
{
	if (rate->per_second == 0)
		return false;
	rate->tokens -= (int64_t)len * 1000;
	if (rate->tokens >= 1000 || rate->is_dry)
		return false;
	rate->is_dry = true;
	return true;
}

uint64_t rate_wait(const struct rate *rate)
{
	int64_t missing = burst(rate) / 4 - rate->tokens;

	if (rate->per_second == 0 || !rate->is_dry)
		return UINT64_MAX;
	return missing > 0 ? (uint64_t)missing / rate->per_second + 1 : 0;
}
