/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/device.h"

#include <sys/epoll.h>

/*
 * A ring without a kick fd is polled: the front-end chose that its driver does
 * not notify. A millisecond bounds both the delay and what an idle guest costs.
 */
#define POLLED_RING_MS 1

#define GENERATION_BITS 24
#define GENERATION_MASK ((UINT32_C(1) << GENERATION_BITS) - 1)

uint64_t device_event(enum device_event_kind kind, uint32_t index, uint32_t generation)
{
	return (uint64_t)kind << 56 | (uint64_t)(generation & GENERATION_MASK) << 32 | index;
}

uint64_t device_pool_len(uint32_t n_connections, uint32_t buffer_size)
{
	return buffer_pool_len(n_connections, buffer_size) + BUFFER_MESSAGE_MAX +
	       handover_tape_len(n_connections, buffer_size);
}

bool device_init(struct device *device, int channel, int epoll)
{
	struct epoll_event event = {
		.events = EPOLLIN,
		.data.u64 = device_event(DEVICE_EVENT_CHANNEL, 0, 0),
	};

	device->channel = channel;
	device->epoll = epoll;
	dirty_log_init(&device->log);
	device->state.fd = -1;
	capture_init(&device->capture);
	device->discarded = -1;
	for (size_t i = 0; i < RINGS; i++) {
		ring_init(&device->rings[i]);
		device->rings[i].log = &device->log;
	}
	return epoll_ctl(epoll, EPOLL_CTL_ADD, channel, &event) == 0;
}

/*
 * Which lists a connection stands in is not for an event to say while it is being taken
 * over: they come with their order. Once all was told and checked there is nobody else to
 * say it, and no second edge.
 */
static void append(const struct device *device, struct link *list, struct link *link)
{
	if (device->handover.phase != HANDOVER_TAKING || device->handover.is_checked)
		link_append(list, link);
}

static void note_socket(struct device *device, struct connection *connection, uint32_t events)
{
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
		connection->is_readable = true;
		append(device, &device->connections.ready, &connection->ready_link);
	}
	if (events & (EPOLLRDHUP | EPOLLHUP))
		connection->is_finished = true;
	if (events & (EPOLLHUP | EPOLLERR))
		connection->has_hung_up = true;
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
		connection->is_writable = true;
		if (connection_has_unsent(connection) || host_may_be_deaf(connection, events))
			append(device, &device->connections.flush, &connection->flush_link);
		if (connection->state == CONNECTION_OPENING)
			append(device, &device->connections.ready, &connection->ready_link);
	}
}

void device_note_look(struct device *device)
{
	device->n_looks++;
}

bool device_note_event(struct device *device, uint64_t event, uint32_t epoll_events)
{
	enum device_event_kind kind = (enum device_event_kind)(event >> 56);
	uint32_t index = (uint32_t)event;
	struct connection *connection;

	if (kind == DEVICE_EVENT_CHANNEL) {
		bool is_attached = !(epoll_events & EPOLLOUT) || control_flush(device);

		/* EPOLLHUP too: what was sent before the end is still to be read. */
		if (is_attached && control_receive(device))
			return true;
		/* What lies on the rings is for a successor: of what is taken nobody would hear. */
		device_detach(device);
		return false;
	}
	if (kind == DEVICE_EVENT_STATE)
		state_event(device);
	if (kind != DEVICE_EVENT_CONNECTION)
		return true; /* a kick: both rings are looked at in any case */

	connection = &device->connections.all[index];
	/* An event of a connection that ended earlier in this round. */
	if (device_event(kind, index, connection->generation) == event && connection->fd >= 0)
		note_socket(device, connection, epoll_events);
	return true;
}

bool device_is_at_rest(const struct device *device)
{
	return device->handover.phase != HANDOVER_NONE;
}

static bool is_running(const struct device *device)
{
	return !device_is_at_rest(device) && ring_is_running(&device->rings[RING_RX]) &&
	       ring_is_running(&device->rings[RING_TX]);
}

static void expire(struct device *device, struct connection *connection,
		   enum connection_timer timer)
{
	switch (timer) {
	case CONNECTION_TIMER_HANDSHAKE:
		host_handshake_failed(device, connection, REPORT_HANDSHAKE_TIMEOUT);
		return;
	case CONNECTION_TIMER_CONNECT:
		if (connection->state == CONNECTION_OPENING)
			host_connect_failed(device, connection, /* is_late= */ true);
		else
			host_handshake_failed(device, connection, REPORT_HANDSHAKE_NO_ANSWER);
		return;
	case CONNECTION_TIMER_RETRY:
		to_guest_send(device, connection, CONNECTION_SEND_REQUEST);
		return;
	case CONNECTION_TIMER_CREDIT:
		/* The guest may have consumed packets without a word: ask again. */
		connection->has_asked_credit = false;
		if (connection->n_unanswered < UINT8_MAX)
			connection->n_unanswered++;
		link_append(&device->connections.ready, &connection->ready_link);
		return;
	case CONNECTION_TIMER_MESSAGE:
		seqpacket_expire(device, connection);
		return;
	case CONNECTION_TIMER_CLOSING:
		host_reset(device, connection);
		return;
	case CONNECTION_TIMER_DRAINING:
		host_close(device, connection);
		return;
	case CONNECTION_TIMERS:
		return;
	}
}

void device_set_time(struct device *device, uint64_t now_us)
{
	uint64_t now = now_us / 1000;

	if (is_running(device))
		device->guest_now += now - device->now;
	device->now_us = now_us;
	device->now = now;
	rate_fill(&device->rate, now);
}

/* Said at each power of two: it may happen many times a second. */
void device_pass(struct device *device, uint32_t len)
{
	uint64_t n_waits;

	if (!rate_take(&device->rate, len))
		return;
	n_waits = device->counters[COUNTER_BANDWIDTH_WAITS] + 1;
	statistics_count(device, COUNTER_BANDWIDTH_WAITS, 1);
	if ((n_waits & (n_waits - 1)) == 0)
		control_report(device, REPORT_RATE_LIMIT, device->rate.per_second, n_waits, 0);
}

void device_arm(struct device *device, struct connection *connection, enum connection_timer timer)
{
	connection_arm(&device->connections, connection, timer,
		       timer == CONNECTION_TIMER_DRAINING ? device->now : device->guest_now);
}

static void run_timers_of(struct device *device, uint32_t timers, uint64_t now)
{
	struct connection *connection;
	enum connection_timer timer;

	while ((connection = connections_expired(&device->connections, timers, now, &timer)))
		expire(device, connection, timer);
}

static void run_timers(struct device *device)
{
	run_timers_of(device, CONNECTION_TIMERS_DRAINING, device->now);
	if (is_running(device))
		run_timers_of(device, CONNECTION_TIMERS_GUEST, device->guest_now);
}

/* Until the first of a set of timers is over; UINT64_MAX when none runs. */
static uint64_t time_left(const struct device *device, uint32_t timers, uint64_t now)
{
	uint64_t deadline = connections_deadline(&device->connections, timers);

	if (deadline == UINT64_MAX)
		return UINT64_MAX;
	return deadline > now ? deadline - now : 0;
}

static void flush_buffers(struct device *device)
{
	struct link *list = &device->connections.flush;

	while (!link_is_empty(list)) {
		struct connection *connection = CONNECTION_OF(flush_link, list->next);

		link_remove(&connection->flush_link);
		host_flush(device, connection);
	}
}

/*
 * Kicks are wanted only by a ring that ran dry while there is use for more: ring
 * 1 always, ring 0 when something waits for buffers. true when chains came
 * before the wish was known: no kick will tell of them.
 */
static bool prepare_to_sleep(struct device *device)
{
	bool has_more = false;

	if (ring_is_running(&device->rings[RING_TX]) && to_guest_has_orphan_room(device) &&
	    !device->rate.is_dry)
		has_more |= ring_enable_kicks(&device->rings[RING_TX]);
	if (ring_is_running(&device->rings[RING_RX]) &&
	    (device->n_orphans > 0 || !link_is_empty(&device->connections.ready)))
		has_more |= ring_enable_kicks(&device->rings[RING_RX]);
	has_more |= event_prepare_to_sleep(device);
	return has_more;
}

/*
 * Who is to answer fast looks on for a while when nothing is left to do: a driver that
 * comes in this time need not kick, and nobody has to be woken. Each packet puts the end
 * off, so an idle guest costs nothing.
 */
static bool goes_on_looking(struct device *device)
{
	uint64_t n_packets = device->counters[COUNTER_TO_GUEST_PACKETS] +
			     device->counters[COUNTER_FROM_GUEST_PACKETS];

	if (device->poll_us == 0 || !is_running(device) || device->rate.is_dry)
		return false;
	if (n_packets != device->n_polled) {
		device->n_polled = n_packets;
		device->poll_end = device->now_us + device->poll_us;
	}
	return device->now_us < device->poll_end;
}

static void report_broken_rings(struct device *device)
{
	for (uint32_t i = 0; i < RINGS; i++) {
		struct ring *ring = &device->rings[i];

		if (!ring->is_broken || ring->broken_reason == 0)
			continue;
		ring_signal_error(ring);
		control_report(device, REPORT_RING_BROKEN, i, ring->broken_reason,
			       ring->broken_value);
		ring->broken_reason = 0;
	}
}

/* Where a limit lets few bytes pass, each direction has its turn to go first. */
static bool move_packets(struct device *device)
{
	bool is_turn_of_host = device->counters[COUNTER_BANDWIDTH_WAITS] % 2;
	bool has_more = false;

	if (is_turn_of_host && ring_is_running(&device->rings[RING_RX]))
		has_more |= to_guest_run(device);
	if (ring_is_running(&device->rings[RING_TX]))
		has_more |= from_guest_run(device);
	if (!is_turn_of_host && ring_is_running(&device->rings[RING_RX]))
		has_more |= to_guest_run(device);
	return has_more;
}

bool device_pump(struct device *device)
{
	bool has_more = false;

	if (device_is_at_rest(device))
		return false;
	run_timers(device);
	flush_buffers(device);
	if (!device->rate.is_dry)
		to_guest_release(device);
	has_more |= move_packets(device);
	event_run(device);
	if (!has_more)
		has_more = goes_on_looking(device) || prepare_to_sleep(device);
	report_broken_rings(device);
	dirty_log_signal(&device->log);
	return has_more;
}

void device_detach(struct device *device)
{
	if (device->handover.phase == HANDOVER_TAKING)
		return;
	/* Who stopped for a successor that did not come sends what it has. */
	handover_resume(device);
	control_detach(device);
	host_release(device);
}

bool device_is_drained(const struct device *device)
{
	return device->handover.phase == HANDOVER_TAKING ||
	       link_is_empty(&device->connections.timers[CONNECTION_TIMER_DRAINING]);
}

int device_timeout(const struct device *device)
{
	uint64_t wait = time_left(device, CONNECTION_TIMERS_DRAINING, device->now);

	if (device_is_at_rest(device))
		return -1;
	for (size_t i = 0; i < RINGS; i++)
		if (ring_is_running(&device->rings[i]) && ring_is_polled(&device->rings[i]) &&
		    (i != RING_EVENT || device->reset != RESET_NONE))
			return POLLED_RING_MS;
	if (is_running(device)) {
		uint64_t of_guest = time_left(device, CONNECTION_TIMERS_GUEST, device->guest_now);

		wait = of_guest < wait ? of_guest : wait;
	}
	/* One of them may run without the other, and wait alone. */
	if (ring_is_running(&device->rings[RING_RX]) || ring_is_running(&device->rings[RING_TX]))
		wait = rate_wait(&device->rate) < wait ? rate_wait(&device->rate) : wait;
	if (wait == UINT64_MAX)
		return -1;
	return wait < INT32_MAX ? (int)wait : INT32_MAX;
}
