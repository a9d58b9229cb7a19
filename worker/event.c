/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "worker/device.h"

/* virtio 1.3, 5.10.6.7: the one event there is, a 32-bit id of 0. */
#define EVENT_TRANSPORT_RESET 0u
#define EVENT_LEN	      4u

/* Into the first buffer that holds an event; others are given back empty. */
static bool put_event(struct device *device, uint32_t id)
{
	static struct iovec parts[RING_PARTS_MAX];
	struct ring *ring = &device->rings[RING_EVENT];
	struct chain chain;
	size_t len = 0;

	while (ring_pop(ring, &device->memory, parts, RING_PARTS_MAX, &chain) == 1) {
		if (chain.is_malformed || chain.n_readable > 0 || chain.writable_len < EVENT_LEN) {
			device->n_dropped++;
			ring_push(ring, chain.head, 0);
			continue;
		}
		for (size_t i = 0; len < EVENT_LEN; i++) {
			size_t n = parts[i].iov_len < EVENT_LEN - len ? parts[i].iov_len
								      : EVENT_LEN - len;

			memcpy(parts[i].iov_base, (const uint8_t *)&id + len, n);
			len += n;
		}
		dirty_log_mark_parts(&device->log, &device->memory, parts, chain.n_writable,
				     EVENT_LEN);
		ring_push(ring, chain.head, EVENT_LEN);
		return true;
	}
	return false;
}

void event_run(struct device *device)
{
	struct ring *ring = &device->rings[RING_EVENT];

	if (!ring_is_running(ring))
		return;
	if (device->reset == RESET_DUE && put_event(device, EVENT_TRANSPORT_RESET)) {
		device->reset = RESET_SENT;
		device->tells_reset_sent = true;
		/* Read before the driver can know of the event. */
		device->reset_index = ring_driver_index(ring);
	}
	ring_publish(ring);
	/* The driver gives the buffer back when it has closed its connections. */
	if (device->reset == RESET_SENT && ring_driver_index(ring) != device->reset_index) {
		device->reset = RESET_NONE;
		device->tells_reset_handled = true;
	}
}

bool event_prepare_to_sleep(struct device *device)
{
	struct ring *ring = &device->rings[RING_EVENT];

	if (!ring_is_running(ring))
		return false;
	if (device->reset == RESET_DUE)
		return ring_enable_kicks(ring);
	if (device->reset == RESET_SENT)
		return ring_enable_kicks_at(ring, device->reset_index);
	return false;
}
