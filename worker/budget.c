/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/budget.h"

#include "worker/buffer.h"

#define SHARE 16

uint32_t budget_cost(uint32_t buffer_len)
{
	/* tx_buffer_size is far below 4 GiB. */
	return buffer_len > 0 ? (uint32_t)buffer_pool_len(1, buffer_len) : 0;
}

static uint64_t left(const struct budget *budget)
{
	return budget->limit > budget->reserved ? budget->limit - budget->reserved : 0;
}

uint32_t budget_offer(const struct budget *budget, uint32_t len)
{
	uint64_t share = left(budget) / SHARE, least = len;

	if (budget->limit == 0)
		return len;
	if (least > BUDGET_BUFFER_MIN)
		least = BUDGET_BUFFER_MIN;
	/* Whole chunks, and one that its bytes may begin and end in. */
	share -= share % BUFFER_CHUNK_LEN;
	share -= share > 0 ? BUFFER_CHUNK_LEN : 0;
	if (share < least)
		share = least;
	if (share > len)
		share = len;
	return budget_cost((uint32_t)share) <= left(budget) ? (uint32_t)share : 0;
}
