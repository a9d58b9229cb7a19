/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/credit.h"

#include <stddef.h>

void credit_init(struct credit *credit, uint32_t buf_alloc)
{
	*credit = (struct credit){.buf_alloc = buf_alloc};
}

static struct credit_group *group_at(struct credit *credit, uint32_t position)
{
	return &credit->groups[(credit->first_group + position) % CREDIT_GROUPS];
}

static void retire_groups(struct credit *credit)
{
	while (credit->n_groups > 0) {
		const struct credit_group *group = group_at(credit, 0);

		/* Consumed when fwd_cnt has passed its end; both lie within 2^31. */
		if ((int32_t)(credit->peer_fwd_cnt - group->end) < 0)
			return;
		credit->n_packets -= group->n_packets;
		credit->first_group = (credit->first_group + 1) % CREDIT_GROUPS;
		credit->n_groups--;
	}
}

bool credit_update(struct credit *credit, uint32_t peer_buf_alloc, uint32_t peer_fwd_cnt)
{
	uint32_t in_flight = credit->tx_cnt - credit->peer_fwd_cnt;

	if (peer_fwd_cnt - credit->peer_fwd_cnt > in_flight)
		return false;
	credit->peer_fwd_cnt = peer_fwd_cnt;
	credit->peer_buf_alloc = peer_buf_alloc;
	retire_groups(credit);
	return true;
}

/* A buffer may shrink below what is on its way to it: then there is no room. */
uint32_t credit_bytes(const struct credit *credit)
{
	uint32_t in_flight = credit->tx_cnt - credit->peer_fwd_cnt;
	/* Half of the counter's range keeps "before" and "behind" apart. */
	uint32_t window = credit->peer_buf_alloc < INT32_MAX ? credit->peer_buf_alloc : INT32_MAX;

	return in_flight >= window ? 0 : window - in_flight;
}

/* A tiny buffer still takes one packet at a time. */
static uint32_t packet_limit(const struct credit *credit)
{
	uint32_t limit = credit->peer_buf_alloc / CREDIT_PACKET_OVERHEAD;

	return limit > 0 ? limit : 1;
}

uint32_t credit_packets(const struct credit *credit)
{
	uint32_t limit = packet_limit(credit);

	return credit->n_packets >= limit ? 0 : limit - credit->n_packets;
}

bool credit_runs_low(const struct credit *credit)
{
	return credit->n_packets >= (packet_limit(credit) + 1) / 2;
}

bool credit_waits_for_empty(const struct credit *credit)
{
	return credit->n_empty > 0 && credit->tx_cnt == credit->peer_fwd_cnt;
}

void credit_empty_consumed(struct credit *credit, uint32_t n)
{
	if (n > credit->n_empty)
		n = credit->n_empty;
	credit->n_empty -= n;
	credit->n_packets -= n;
}

void credit_sent(struct credit *credit, uint32_t len)
{
	uint32_t group_size = packet_limit(credit) / CREDIT_GROUPS + 1;
	struct credit_group *last = NULL;

	if (len == 0) {
		/* The other half of the numbers is for bytes in flight, see credit_bytes(). */
		bool has_number = credit->n_packets < INT32_MAX;

		credit->n_packets += has_number;
		credit->n_empty += has_number;
		return;
	}
	credit->n_packets++;
	if (credit->n_groups > 0)
		last = group_at(credit, credit->n_groups - 1);
	if (!last || (last->n_packets >= group_size && credit->n_groups < CREDIT_GROUPS)) {
		last = group_at(credit, credit->n_groups++);
		last->n_packets = 0;
	}
	credit->tx_cnt += len;
	last->end = credit->tx_cnt;
	/* Whoever consumes a byte has consumed what came before it. */
	last->n_packets += 1 + credit->n_empty;
	credit->n_empty = 0;
}

bool credit_received(struct credit *credit, uint32_t len)
{
	uint32_t unread = credit->rx_cnt - credit->fwd_cnt; /* <= buf_alloc, always */

	if (len > credit->buf_alloc - unread)
		return false;
	credit->rx_cnt += len;
	return true;
}

void credit_forwarded(struct credit *credit, uint32_t len)
{
	credit->fwd_cnt += len;
}

bool credit_wants_update(const struct credit *credit)
{
	uint32_t untold = credit->fwd_cnt - credit->announced;
	uint32_t unknown = credit->rx_cnt - credit->announced;
	uint32_t window = credit->buf_alloc;

	if (untold == 0)
		return false;
	/* Recent Linux guests send no more at a time than their own buffer would hold. */
	if (credit->peer_buf_alloc < window)
		window = credit->peer_buf_alloc;
	return untold >= window / 2 || unknown > window - window / 4;
}

void credit_announced(struct credit *credit)
{
	credit->announced = credit->fwd_cnt;
}

/* Unread packets: each group ends behind the one before, and the last where we are. */
static bool are_groups_sound(const struct credit *credit)
{
	uint32_t in_flight = credit->tx_cnt - credit->peer_fwd_cnt, before = 0;
	uint64_t n_packets = credit->n_empty;

	if (credit->n_groups > CREDIT_GROUPS || credit->first_group >= CREDIT_GROUPS)
		return false;
	for (uint32_t i = 0; i < credit->n_groups; i++) {
		uint32_t at = (credit->first_group + i) % CREDIT_GROUPS;
		uint32_t end = credit->groups[at].end - credit->peer_fwd_cnt;

		if (end <= before || end > in_flight || credit->groups[at].n_packets == 0)
			return false;
		before = end;
		n_packets += credit->groups[at].n_packets;
	}
	return before == in_flight && n_packets == credit->n_packets;
}

bool credit_is_sound(const struct credit *credit, uint32_t buf_alloc, uint32_t len)
{
	if (credit->buf_alloc != buf_alloc || len > buf_alloc ||
	    credit->rx_cnt - credit->fwd_cnt != len)
		return false;
	return credit->tx_cnt - credit->peer_fwd_cnt <= INT32_MAX && are_groups_sound(credit);
}
