/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "worker/device.h"

/* virtio 1.3, 5.10.6.7: the one event there is, a 32-bit id of 0. */
#define EVENT_TRANSPORT_RESET 0u
#define EVENT_LEN	      4u

static void write_event(struct device *device, const struct chain *chain, uint32_t id)
{
	size_t len = 0;

	for (size_t i = 0; len < EVENT_LEN; i++) {
		const struct iovec *part = &chain->parts[i];
		size_t n = part->iov_len < EVENT_LEN - len ? part->iov_len : EVENT_LEN - len;

		memcpy(part->iov_base, (const uint8_t *)&id + len, n);
		len += n;
	}
	dirty_log_mark_parts(&device->log, &device->memory, chain->parts, chain->n_writable,
			     EVENT_LEN);
}

/* The first buffer that holds an event; others are given back empty, and seen to be. */
static bool pop_buffer(struct device *device, struct iovec *parts, struct chain *ret_chain)
{
	struct ring *ring = &device->rings[RING_EVENT];

	while (ring_pop(ring, &device->memory, parts, RING_PARTS_MAX, ret_chain) == 1) {
		if (!ret_chain->is_malformed && ret_chain->n_readable == 0 &&
		    ret_chain->writable_len >= EVENT_LEN)
			return true;
		device->n_dropped++;
		ring_push(ring, &ret_chain->ticket, 0);
		ring_publish(ring);
	}
	return false;
}

/*
 * Told before it can be seen, with the place where it will be: whoever comes after a
 * worker that died in between finds there whether the driver got it. Once is what
 * the driver is owed, not about once.
 */
static void send_reset(struct device *device)
{
	static struct iovec parts[RING_PARTS_MAX];
	struct ring *ring = &device->rings[RING_EVENT];
	struct chain chain;

	if (!pop_buffer(device, parts, &chain))
		return;
	if (!control_announce_reset(device, ring_used_position(ring))) {
		ring_unpop(ring, &chain);
		return;
	}
	write_event(device, &chain, EVENT_TRANSPORT_RESET);
	/* Read before the driver can know of the event. */
	device->reset_index = ring_driver_position(ring);
	ring_push(ring, &chain.ticket, EVENT_LEN);
	device->reset = RESET_SENT;
	device->tells_reset_sent = true;
	ring_publish(ring);
}

/* The worker before this one said where; nobody can see any more when it is handled. */
static bool was_sent_before(struct device *device)
{
	bool was_sent = device->was_announced &&
			ring_used_position(&device->rings[RING_EVENT]) != device->announced_used;

	device->was_announced = false;
	if (!was_sent)
		return false;
	device->reset = RESET_NONE;
	device->tells_reset_sent = true;
	device->tells_reset_handled = true;
	return true;
}

void event_run(struct device *device)
{
	struct ring *ring = &device->rings[RING_EVENT];

	device->waits_to_announce = false;
	if (!ring_is_running(ring))
		return;
	if (device->reset == RESET_DUE && !was_sent_before(device))
		send_reset(device);
	/* The driver gives the buffer back when it has closed its connections. */
	if (device->reset == RESET_SENT && ring_driver_is_past(ring, device->reset_index)) {
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
