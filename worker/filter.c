/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/filter.h"

static void take_if_whole(struct filter *filter)
{
	if (filter->next.n_ranges == filter->n_awaited)
		filter->current = filter->next;
}

bool filter_begin(struct filter *filter, uint32_t n_ranges)
{
	if (n_ranges > FILTER_RANGES_MAX)
		return false;
	filter->next.n_ranges = 0;
	filter->n_awaited = n_ranges;
	take_if_whole(filter);
	return true;
}

bool filter_add(struct filter *filter, const struct filter_range *range)
{
	if (filter->next.n_ranges == filter->n_awaited)
		return false;
	filter->next.ranges[filter->next.n_ranges++] = *range;
	take_if_whole(filter);
	return true;
}

bool filter_passes(const struct filter *filter, uint32_t port)
{
	bool has_allowed = false, is_allowed = false;

	for (uint32_t i = 0; i < filter->current.n_ranges; i++) {
		const struct filter_range *range = &filter->current.ranges[i];
		bool is_in = range->first <= port && port <= range->last;

		if (is_in && range->is_denied)
			return false;
		has_allowed |= !range->is_denied;
		is_allowed |= is_in;
	}
	return !has_allowed || is_allowed;
}
