/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "worker/device.h"
#include "worker/handover.h"

static bool record(struct device *device, const void *bytes, size_t len)
{
	const struct iovec part = {(void *)(uintptr_t)bytes, len};

	return buffer_append(&device->pool, &device->handover.tape, &part, 1);
}

static bool record_chunks(struct device *device, const struct buffer *buffer)
{
	uint32_t n = buffer_n_chunks(buffer), chunk = buffer->first;

	for (uint32_t i = 0; i < n; i++) {
		if (!record(device, &chunk, sizeof(chunk)))
			return false;
		chunk = buffer_chunk_behind(&device->pool, chunk);
	}
	return true;
}

static bool record_connection(struct device *device, const struct connection *connection)
{
	struct {
		uint32_t len;
		uint8_t bytes[HANDOVER_RECORD_MAX];
	} head;

	if (connection->state == CONNECTION_FREE)
		return true;
	head.len = (uint32_t)handover_put_record(device, connection, head.bytes);
	return record(device, &head, sizeof(head.len) + head.len) &&
	       record_chunks(device, &connection->buffer) &&
	       record_chunks(device, &connection->rest);
}

static bool make_tape(struct device *device)
{
	for (uint32_t i = 0; i < device->connections.n_touched; i++)
		if (!record_connection(device, &device->connections.all[i]))
			return false;
	return true;
}

static void drop_tape(struct device *device)
{
	buffer_consume(&device->pool, &device->handover.tape, device->handover.tape.len);
}

int handover_freeze(struct device *device, uint32_t sequence)
{
	/* A state on its way through a pipe is no business of anybody else. */
	if (device->state.phase != STATE_IDLE)
		return -EBUSY;
	device->handover = (struct handover){
		.phase = HANDOVER_TELLING,
		.sequence = sequence,
	};
	if (make_tape(device))
		return 0;
	handover_resume(device);
	return -ENOSPC; /* the pool was made with room for it */
}

void handover_resume(struct device *device)
{
	drop_tape(device);
	device->handover.phase = HANDOVER_NONE;
}

static void next_stage(struct handover *handover)
{
	handover->stage++;
	handover->at = 0;
	handover->link = NULL;
}

static int tell_device(struct device *device)
{
	Vsockd__HandoverDevice told = VSOCKD__HANDOVER_DEVICE__INIT;
	int r;

	told.next_port = device->connections.next_port;
	told.n_dropped = device->n_dropped;
	told.n_refused = device->n_refused;
	told.is_quarantined = device->is_quarantined;
	told.reset = (uint32_t)device->reset;
	told.reset_index = device->reset_index;
	told.tells_reset_sent = device->tells_reset_sent;
	told.tells_reset_handled = device->tells_reset_handled;
	told.was_announced = device->was_announced;
	told.announced_used = device->announced_used;
	told.capture_dropped = device->capture.n_dropped;
	told.tape_len = device->handover.tape.len;
	told.rate_tokens = (uint64_t)device->rate.tokens;
	/* Lists are told next: what is held back is only ready. */
	to_guest_release(device);
	r = control_send(device, &told.base);
	if (r == 0)
		next_stage(&device->handover);
	return r;
}

/* The items of a list, as the bytes that they are. */
#define ITEMS(message) ((uint8_t *)(message) + offsetof(Vsockd__HandoverList, item_0))

static int tell_counters(struct device *device)
{
	struct handover *handover = &device->handover;
	Vsockd__HandoverMore told = VSOCKD__HANDOVER_MORE__INIT;
	uint32_t n = COUNTER_MAX - handover->at;
	int r;

	if (n > HANDOVER_WORDS)
		n = HANDOVER_WORDS;
	memcpy((uint8_t *)&told + offsetof(Vsockd__HandoverMore, word_0),
	       &device->counters[handover->at], n * sizeof(device->counters[0]));
	r = control_send(device, &told.base);
	if (r != 0)
		return r;
	handover->at += n;
	if (handover->at == COUNTER_MAX)
		next_stage(handover);
	return 0;
}

static int tell_ring(struct device *device)
{
	struct handover *handover = &device->handover;
	Vsockd__HandoverRing told = VSOCKD__HANDOVER_RING__INIT;
	const struct ring *ring = &device->rings[handover->at];
	struct ring_state state = ring_state(ring);
	int r;

	told.ring = handover->at;
	told.ring_base = state.base;
	told.is_started = ring->is_started;
	told.was_called = state.was_called;
	told.owes_first_call = state.owes_first_call;
	told.is_broken = ring->is_broken;
	told.broken_reason = ring->broken_reason;
	told.broken_value = ring->broken_value;
	r = control_send(device, &told.base);
	if (r == 0 && ++handover->at == RINGS)
		next_stage(handover);
	return r;
}

static int send_list(struct device *device, uint32_t list, const uint32_t *items, uint32_t n)
{
	Vsockd__HandoverList told = VSOCKD__HANDOVER_LIST__INIT;

	told.list = list;
	told.n = n;
	memcpy(ITEMS(&told), items, n * sizeof(items[0]));
	return control_send(device, &told.base);
}

static int tell_tape(struct device *device)
{
	struct handover *handover = &device->handover;
	uint32_t n_all = buffer_n_chunks(&handover->tape);
	uint32_t chunk = handover->at == 0 ? handover->tape.first : handover->chunk;
	uint32_t items[HANDOVER_LIST_MAX], n = 0;
	int r = 0;

	while (n < HANDOVER_LIST_MAX && handover->at + n < n_all) {
		items[n++] = chunk;
		chunk = buffer_chunk_behind(&device->pool, chunk);
	}
	if (n > 0)
		r = send_list(device, HANDOVER_TAPE, items, n);
	if (r != 0)
		return r;
	handover->at += n;
	handover->chunk = chunk;
	if (handover->at == n_all)
		next_stage(handover);
	return 0;
}

static int tell_connections(struct device *device)
{
	struct handover *handover = &device->handover;
	Vsockd__HandoverConnections told = VSOCKD__HANDOVER_CONNECTIONS__INIT;
	uint32_t at = handover->at;
	int r = 0;

	for (; at < device->connections.n_touched && told.n < HANDOVER_CLAIMS_MAX; at++) {
		const struct connection *connection = &device->connections.all[at];
		struct handover_claim claim = {.index = at};

		if (connection->state == CONNECTION_FREE)
			continue;
		claim.has_endpoint = handover_has_endpoint(connection);
		claim.endpoint = claim.has_endpoint ? connection->endpoint : 0;
		claim.has_socket = handover_has_socket(connection);
		claim.awaits_answer = handover_awaits_answer(connection);
		message_put_claim(&told, told.n++, &claim);
	}
	if (told.n > 0)
		r = control_send(device, &told.base);
	if (r != 0)
		return r;
	handover->at = at;
	if (at == device->connections.n_touched)
		next_stage(handover);
	return 0;
}

static const struct link *list_head(const struct device *device, uint32_t list)
{
	const struct connections *connections = &device->connections;

	if (list == HANDOVER_READY)
		return &connections->ready;
	if (list == HANDOVER_TELL)
		return &connections->tell;
	return &connections->timers[list - HANDOVER_TIMERS];
}

static const struct connection *list_entry(uint32_t list, const struct link *link)
{
	if (list == HANDOVER_READY)
		return CONNECTION_OF(ready_link, link);
	if (list == HANDOVER_TELL)
		return CONNECTION_OF(tell_link, link);
	return CONNECTION_OF(timer_link, link);
}

/*
 * While frozen nothing leaves a list; what an event appends to the first one is of
 * no interest to a successor, who will see that event too.
 */
static int tell_list(struct device *device)
{
	struct handover *handover = &device->handover;
	const struct link *head = list_head(device, handover->at);
	const struct link *link = handover->link ? handover->link : head->next;
	uint32_t items[HANDOVER_LIST_MAX], n = 0;
	int r = 0;

	while (n < HANDOVER_LIST_MAX && link != head) {
		items[n++] = connection_index(&device->connections, list_entry(handover->at, link));
		link = link->next;
	}
	if (n > 0)
		r = send_list(device, handover->at, items, n);
	if (r != 0)
		return r;
	handover->link = link;
	if (link != head)
		return 0;
	handover->link = NULL;
	if (++handover->at == HANDOVER_TAPE)
		next_stage(handover);
	return 0;
}

static int tell_orphan(struct device *device)
{
	struct handover *handover = &device->handover;
	Vsockd__HandoverOrphan told = VSOCKD__HANDOVER_ORPHAN__INIT;
	const struct orphan *orphan;
	int r;

	if (handover->at == device->n_orphans) {
		next_stage(handover);
		return 0;
	}
	orphan = &device->orphans[(device->first_orphan + handover->at) % ORPHANS_MAX];
	told.src_cid = orphan->src_cid;
	told.src_port = orphan->src_port;
	told.dst_port = orphan->dst_port;
	told.type = orphan->type;
	r = control_send(device, &told.base);
	handover->at += r == 0;
	return r;
}

int handover_tell(struct device *device)
{
	static int (*const tell[HANDOVER_STAGE_END])(struct device * device) = {
		[HANDOVER_STAGE_DEVICE] = tell_device,
		[HANDOVER_STAGE_COUNTERS] = tell_counters,
		[HANDOVER_STAGE_RINGS] = tell_ring,
		[HANDOVER_STAGE_TAPE] = tell_tape,
		[HANDOVER_STAGE_CONNECTIONS] = tell_connections,
		[HANDOVER_STAGE_LISTS] = tell_list,
		[HANDOVER_STAGE_ORPHANS] = tell_orphan,
	};
	struct handover *handover = &device->handover;
	int r = 0;

	while (r == 0 && handover->stage != HANDOVER_STAGE_END)
		r = tell[handover->stage](device);
	if (r == 0)
		handover->phase = HANDOVER_TOLD;
	return r;
}
