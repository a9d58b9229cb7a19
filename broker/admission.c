/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/front.h"

/* A bucket of one second's connections: so many may begin at once after a quiet second. */

static void fill(struct device *device)
{
	uint64_t rate = device->configuration->max_connection_rate;
	uint64_t passed = device->front->now - device->admission_filled;

	device->admission_filled = device->front->now;
	device->admission_tokens += rate * (passed < 1000 ? passed : 1000);
	if (device->admission_tokens > rate * 1000)
		device->admission_tokens = rate * 1000;
}

bool admission_take(struct device *device)
{
	if (device->configuration->max_connection_rate == 0)
		return true;
	fill(device);
	if (device->admission_tokens < 1000)
		return false;
	device->admission_tokens -= 1000;
	return true;
}
