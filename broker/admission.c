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

static const char *refuse(struct device *device, enum device_refusal refusal, const char *reason)
{
	device->n_refusals[refusal]++;
	return reason;
}

const char *admission_refuses(struct device *device)
{
	if (device->configuration->max_connection_rate == 0)
		return NULL;
	fill(device);
	if (device->admission_tokens < 1000)
		return refuse(device, REFUSAL_CONNECTION_RATE,
			      "more connections in a second than there may be");
	device->admission_tokens -= 1000;
	return NULL;
}

const char *admission_refuses_guest(struct device *device, uint32_t port)
{
	if (!ports_pass(&device->configuration->outgoing, port))
		return refuse(device, REFUSAL_OUTGOING_PORT, "that port is denied to the guest");
	return admission_refuses(device);
}

const char *admission_refuses_port(struct device *device, uint32_t guest_port)
{
	if (!ports_pass(&device->configuration->incoming, guest_port))
		return refuse(device, REFUSAL_INCOMING_PORT, "that port of the guest is denied");
	return NULL;
}
