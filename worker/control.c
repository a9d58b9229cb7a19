/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "worker/device.h"

/* Messages in one wake-up: the rings get their turn, where somebody waits for them. */
#define ROUND_MESSAGES	      64
#define ROUND_MESSAGES_TAKING 1024

/* virtio 1.3, 5.10.3: streams go without saying, unless the driver says so. */
static uint32_t allowed_types(uint64_t features)
{
	uint32_t types = 0;

	if ((features & PACKET_F_STREAM) || !(features & PACKET_F_NO_IMPLIED_STREAM))
		types |= 1u << PACKET_TYPE_STREAM;
	if (features & PACKET_F_SEQPACKET)
		types |= 1u << PACKET_TYPE_SEQPACKET;
	return types;
}

static int on_assign(struct device *device, const Vsockd__Assign *assign)
{
	if (device_pool_len(assign->max_connections, assign->buffer_size) >
	    (uint64_t)device->pool.n_chunks * BUFFER_CHUNK_LEN)
		return -ENOSPC;
	if (assign->max_connections > device->connections.n_max / 2)
		return -ENOSPC;
	device->guest_cid = assign->guest_cid;
	device->types = allowed_types(0);
	device->buffer_size = assign->buffer_size;
	device->message_size = assign->message_size;
	device->max_handshakes = assign->max_handshakes;
	device->is_quiet = assign->is_quiet;
	device->poll_us = assign->poll_us;
	device->n_retries = (uint16_t)(assign->wait_ms / CONNECTION_RETRY_MS);
	connections_assign(&device->connections, assign->max_connections, assign->first_port);
	device->is_assigned = true;
	return 0;
}

static int on_limits(struct device *device, const Vsockd__Limits *limits)
{
	if (limits->bytes_per_second > RATE_MAX)
		return -ERANGE;
	rate_limit(&device->rate, limits->bytes_per_second, device->now);
	device->connections.budget.limit = limits->buffer_memory;
	return filter_begin(&device->filter, limits->n_ranges) ? 0 : -ENOSPC;
}

static int on_port_range(struct device *device, const Vsockd__PortRange *told)
{
	const struct filter_range range = {told->first, told->last, told->is_denied};

	return filter_add(&device->filter, &range) ? 0 : -ENOSPC;
}

static int on_features(struct device *device, uint64_t features)
{
	device->features = features;
	device->types = allowed_types(features);
	device->log.is_on = features >> 26 & 1;
	for (size_t i = 0; i < RINGS; i++) {
		device->rings[i].has_event_idx = features >> 29 & 1;
		device->rings[i].has_indirect = features >> 28 & 1;
		device->rings[i].has_packed = features >> 34 & 1;
		device->rings[i].has_in_order = features >> 35 & 1;
	}
	return 0;
}

/* Mapped for good: once, since there is one in the life of a worker. */
static int on_ring_journal(struct device *device, int fd)
{
	struct guest_mapping mapping;
	struct ring_journal *journals;
	int r = device->rings[0].journal
			? -EEXIST
			: guest_memory_map(fd, RING_JOURNAL_LEN, 0, RING_JOURNAL_LEN, &mapping);

	close(fd);
	if (r < 0)
		return r;
	journals = mapping.place;
	for (size_t i = 0; i < RINGS; i++)
		device->rings[i].journal = &journals[i];
	return 0;
}

static int on_memory_add(struct device *device, const Vsockd__MemoryAdd *add, int fd)
{
	struct guest_region region = {
		.guest_address = add->guest_address,
		.size = add->size,
		.user_address = add->user_address,
	};

	return guest_memory_add(&device->memory, &region, add->mmap_offset, add->alignment, fd,
				add->is_staged);
}

static void relocate_rings(struct device *device)
{
	for (size_t i = 0; i < RINGS; i++)
		ring_relocate(&device->rings[i], &device->memory);
}

static int on_memory_remove(struct device *device, const Vsockd__MemoryRemove *remove)
{
	int r = guest_memory_remove(&device->memory, remove->guest_address, remove->size,
				    remove->user_address);

	relocate_rings(device);
	return r;
}

static int on_memory_commit(struct device *device)
{
	guest_memory_commit(&device->memory);
	relocate_rings(device);
	return 0;
}

static void replace_fd(int *place, int fd)
{
	if (*place >= 0)
		close(*place);
	*place = fd;
}

/*
 * The front keeps a duplicate, so closing alone would not end the watch. One that cannot be
 * watched is as good as none: the ring is polled.
 */
static void replace_kick(struct device *device, struct ring *ring, uint32_t index, int fd)
{
	struct epoll_event event = {
		.events = EPOLLIN | EPOLLET, /* never read: an eventfd tells of each signal */
		.data.u64 = device_event(DEVICE_EVENT_KICK, index, 0),
	};

	if (ring->kick >= 0)
		epoll_ctl(device->epoll, EPOLL_CTL_DEL, ring->kick, NULL);
	replace_fd(&ring->kick, fd);
	if (fd >= 0 && epoll_ctl(device->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
		ring->kick_error = errno; /* said when this worker may speak of itself */
		replace_fd(&ring->kick, -1);
	}
}

/* A ring that was stopped or disabled runs now. */
static void wake_ring(const struct device *device, struct ring *ring)
{
	if (!ring_is_running(ring) || device_is_at_rest(device))
		return;
	ring_enable_kicks(ring); /* what stands there may be stale since a former start */
	/* The worker before may have ended behind its last used chain and before the call. */
	if (ring->owes_first_call)
		ring_call(ring);
	ring->owes_first_call = false;
}

static int on_ring_start(struct device *device, const Vsockd__RingStart *start, int fd)
{
	struct ring_addresses addresses = {start->desc, start->used, start->avail};
	struct ring *ring = &device->rings[start->ring];
	int r = 0;

	replace_kick(device, ring, start->ring, fd);
	if (ring->is_started) {
		ring->in_band = start->in_band;
		return 0;
	}
	ring->is_logged = start->is_logged;
	ring->log_address = start->log_address;
	ring->in_band = start->in_band;
	r = ring_start(ring, &device->memory, start->num, &addresses, start->ring_base,
		       start->from_used_index);
	/* It may have been broken where it was served before: that is told later. */
	if (r == -EFAULT && device_is_at_rest(device))
		return 0;
	if (r < 0)
		return r;
	ring->owes_first_call = start->from_used_index;
	wake_ring(device, ring);
	return 0;
}

static int on_ring_enable(struct device *device, const Vsockd__RingEnable *enable)
{
	struct ring *ring = &device->rings[enable->ring];

	ring->is_enabled = enable->is_enabled;
	wake_ring(device, ring);
	return 0;
}

static int on_suspend(struct device *device, bool is_on)
{
	for (size_t i = 0; i < RINGS; i++) {
		struct ring *ring = &device->rings[i];

		ring->is_suspended = is_on;
		/* Kicks that came meanwhile are not asked for: rings that run are looked at. */
		wake_ring(device, ring);
	}
	return 0;
}

static int on_ring_call(struct device *device, const Vsockd__RingCall *call, int fd)
{
	struct ring *ring = &device->rings[call->ring];

	replace_fd(&ring->call, fd);
	ring->in_band &= ~(uint32_t)RING_CALLED_IN_BAND;
	ring->owes_call = false;
	/* What was used before the driver could be called through it. */
	if (ring_is_running(ring) && !device_is_at_rest(device))
		ring_call(ring);
	return 0;
}

static int on_ring_error(struct device *device, const Vsockd__RingError *error, int fd)
{
	struct ring *ring = &device->rings[error->ring];

	replace_fd(&ring->error, fd);
	ring->in_band &= ~(uint32_t)RING_FAILS_IN_BAND;
	ring->owes_error = false;
	return 0;
}

static int on_ring_log(struct device *device, const Vsockd__RingLog *log)
{
	struct ring *ring = &device->rings[log->ring];

	ring->is_logged = log->is_logged;
	ring->log_address = log->log_address;
	return 0;
}

static int on_quarantine(struct device *device, const Vsockd__Quarantine *quarantine)
{
	device->is_quarantined = quarantine->is_on;
	device->reset = quarantine->sends_reset ? RESET_DUE : RESET_NONE;
	device->was_announced = quarantine->was_announced;
	device->announced_used = quarantine->used;
	if (quarantine->is_on)
		return 0;
	/* What the guest asked for meanwhile. */
	for (uint32_t i = 0; i < device->connections.n_touched; i++) {
		struct connection *connection = &device->connections.all[i];

		if (connection->state != CONNECTION_FREE &&
		    connection->tell & CONNECTION_TELL_CONNECT)
			link_append(&device->connections.tell, &connection->tell_link);
	}
	return 0;
}

static int on_state_load(struct device *device, int fd)
{
	int r = state_load(device, fd);

	/* Otherwise it may be true of one that is on its way. */
	if (r == 0)
		device->state.was_loaded = true;
	return r;
}

static int on_state_save(struct device *device, uint32_t flags, int fd)
{
	int r = state_save(device, flags, fd);

	if (r == 0)
		device->state.was_loaded = false;
	return r;
}

static void forget_connection(struct device *device, struct connection *connection)
{
	switch (connection->state) {
	case CONNECTION_FREE:
	case CONNECTION_ABANDONED:
		return;
	case CONNECTION_DRAINING:
	case CONNECTION_DEAD:
		connection->due = 0;
		host_free_when_done(device, connection);
		return;
	case CONNECTION_REQUESTED:
		host_abandon(device, connection);
		return;
	case CONNECTION_ESTABLISHED:
		connection->is_reset = true;
		host_drain(device, connection, false);
		return;
	case CONNECTION_CLOSING:
		host_drain(device, connection, false);
		return;
	default:
		host_close(device, connection);
	}
}

/* What the guest sent before is still delivered, but nothing reaches it. */
static void forget_all(struct device *device)
{
	for (uint32_t i = 0; i < device->connections.n_touched; i++)
		forget_connection(device, &device->connections.all[i]);
	device->n_orphans = 0;
}

void control_detach(struct device *device)
{
	for (size_t i = 0; i < RINGS; i++)
		ring_stop(&device->rings[i]);
	forget_all(device);
	/* Draining may take a while; the guest's memory is not kept alive for it. */
	guest_memory_clear(&device->memory);
	epoll_ctl(device->epoll, EPOLL_CTL_DEL, device->channel, NULL);
}

static int on_fail(struct device *device)
{
	for (size_t i = 0; i < RINGS; i++)
		ring_signal_error(&device->rings[i]);
	return 0;
}

static bool on_connected(struct device *device, const Vsockd__Connected *connected, int fd)
{
	struct connection *connection;

	if (connected->request >= device->connections.n_max)
		return false;
	connection = &device->connections.all[connected->request];
	if (connection->state != CONNECTION_REQUESTED && connection->state != CONNECTION_ABANDONED)
		return false;
	if ((connected->status == 0) != (fd >= 0))
		return false;
	if (fd >= 0)
		host_connected(device, connection, connected, fd);
	else
		host_refused(device, connection);
	return true;
}

static void on_lost(struct device *device, const Vsockd__Lost *lost)
{
	struct connection *connection =
		connection_take(&device->connections, CONNECTION_DEAD, device->connections.n_max);

	if (!connection)
		__builtin_trap(); /* the front counts endpoints; so many were not promised */
	connection->guest_port = lost->guest_port;
	connection->host_port = lost->host_port;
	connection->peer_cid = lost->cid;
	connection->type = (uint16_t)lost->type;
	connection->endpoint = lost->endpoint;
	connection->tell = CONNECTION_TELL_CLOSED;
	to_guest_send(device, connection, CONNECTION_SEND_RST);
}

/* It may have ended a moment ago, and told so: then there is nothing to do. */
static void on_abort(struct device *device, uint32_t endpoint)
{
	for (uint32_t i = 0; i < device->connections.n_touched; i++) {
		struct connection *connection = &device->connections.all[i];

		if (connection->fd < 0 || connection->endpoint != endpoint)
			continue;
		/* Only who knows of it is told: no guest does before, or after, the rest. */
		if (connection->state == CONNECTION_HANDSHAKE ||
		    connection->state == CONNECTION_DRAINING)
			host_close(device, connection);
		else
			host_reset(device, connection);
		return;
	}
}

/* The ring that a command names; 0 where it names none. */
static uint32_t named_ring(const Vsockd__Envelope *envelope)
{
	switch (envelope->body_case) {
	case VSOCKD__ENVELOPE__BODY_RING_START:
		return envelope->ring_start->ring;
	case VSOCKD__ENVELOPE__BODY_RING_ENABLE:
		return envelope->ring_enable->ring;
	case VSOCKD__ENVELOPE__BODY_RING_STOP:
		return envelope->ring_stop->ring;
	case VSOCKD__ENVELOPE__BODY_RING_CALL:
		return envelope->ring_call->ring;
	case VSOCKD__ENVELOPE__BODY_RING_ERROR:
		return envelope->ring_error->ring;
	case VSOCKD__ENVELOPE__BODY_RING_KICK:
		return envelope->ring_kick->ring;
	case VSOCKD__ENVELOPE__BODY_RING_LOG:
		return envelope->ring_log->ring;
	default:
		return 0;
	}
}

static bool is_type(uint32_t type)
{
	return type == PACKET_TYPE_STREAM || type == PACKET_TYPE_SEQPACKET;
}

/* What is answered by more than its Done, or is not answered. false as for dispatch(). */
static bool hear(struct device *device, const Vsockd__Envelope *envelope, int fd)
{
	switch (envelope->body_case) {
	case VSOCKD__ENVELOPE__BODY_DISCARD:
		/* The front has closed its own of the one before, and so is not the last. */
		replace_fd(&device->discarded, fd);
		return true;
	case VSOCKD__ENVELOPE__BODY_ACCEPTED:
		if (!is_type(envelope->accepted->type))
			return false;
		if (envelope->accepted->cid == PACKET_HOST_CID)
			host_accepted(device, envelope->accepted, fd);
		else
			host_accepted_sibling(device, envelope->accepted, fd);
		return true;
	case VSOCKD__ENVELOPE__BODY_PEER_RESET:
		host_peer_reset(device, envelope->peer_reset);
		return true;
	case VSOCKD__ENVELOPE__BODY_LOST:
		if (!is_type(envelope->lost->type))
			return false;
		on_lost(device, envelope->lost);
		return true;
	case VSOCKD__ENVELOPE__BODY_CONNECTED:
		return on_connected(device, envelope->connected, fd);
	case VSOCKD__ENVELOPE__BODY_COUNTERS_QUERY:
		statistics_ask(device, ANSWER_COUNTERS, envelope->counters_query->query, 0);
		return true;
	case VSOCKD__ENVELOPE__BODY_CONNECTIONS_QUERY:
		statistics_ask(device, ANSWER_CONNECTIONS, envelope->connections_query->query,
			       envelope->connections_query->first);
		return true;
	case VSOCKD__ENVELOPE__BODY_ABORT:
		on_abort(device, envelope->abort->endpoint);
		return true;
	default:
		/* The table of messages lets nothing else through. */
		handover_take(device, envelope, fd);
		return true;
	}
}

/* No status, nor an errno. */
#define IS_NO_COMMAND 1

/* The status of a command, for its Done; IS_NO_COMMAND: it is none. Owns fd, unless it is none. */
static int obey(struct device *device, const Vsockd__Envelope *envelope, int fd)
{
	switch (envelope->body_case) {
	case VSOCKD__ENVELOPE__BODY_ASSIGN:
		return on_assign(device, envelope->assign);
	case VSOCKD__ENVELOPE__BODY_LIMITS:
		return on_limits(device, envelope->limits);
	case VSOCKD__ENVELOPE__BODY_PORT_RANGE:
		return on_port_range(device, envelope->port_range);
	case VSOCKD__ENVELOPE__BODY_RING_JOURNAL:
		return on_ring_journal(device, fd);
	case VSOCKD__ENVELOPE__BODY_FEATURES:
		return on_features(device, envelope->features->features);
	case VSOCKD__ENVELOPE__BODY_MEMORY_ADD:
		return on_memory_add(device, envelope->memory_add, fd);
	case VSOCKD__ENVELOPE__BODY_MEMORY_REMOVE:
		return on_memory_remove(device, envelope->memory_remove);
	case VSOCKD__ENVELOPE__BODY_MEMORY_COMMIT:
		return on_memory_commit(device);
	case VSOCKD__ENVELOPE__BODY_RING_START:
		return on_ring_start(device, envelope->ring_start, fd);
	case VSOCKD__ENVELOPE__BODY_RING_ENABLE:
		return on_ring_enable(device, envelope->ring_enable);
	case VSOCKD__ENVELOPE__BODY_RING_CALL:
		return on_ring_call(device, envelope->ring_call, fd);
	case VSOCKD__ENVELOPE__BODY_RING_ERROR:
		return on_ring_error(device, envelope->ring_error, fd);
	case VSOCKD__ENVELOPE__BODY_RING_KICK:
		/* Rings that run are looked at in each round, kicked or not. */
		return 0;
	case VSOCKD__ENVELOPE__BODY_RING_LOG:
		return on_ring_log(device, envelope->ring_log);
	case VSOCKD__ENVELOPE__BODY_SUSPEND:
		return on_suspend(device, envelope->suspend->is_on);
	case VSOCKD__ENVELOPE__BODY_LOG_SET:
		return dirty_log_set(&device->log, envelope->log_set->size,
				     envelope->log_set->mmap_offset, envelope->log_set->alignment,
				     fd);
	case VSOCKD__ENVELOPE__BODY_LOG_FD:
		replace_fd(&device->log.fd, fd);
		return 0;
	case VSOCKD__ENVELOPE__BODY_QUARANTINE:
		return on_quarantine(device, envelope->quarantine);
	case VSOCKD__ENVELOPE__BODY_STATE_SAVE:
		return on_state_save(device, envelope->state_save->flags, fd);
	case VSOCKD__ENVELOPE__BODY_STATE_LOAD:
		return on_state_load(device, fd);
	case VSOCKD__ENVELOPE__BODY_RESET:
		forget_all(device);
		return 0;
	case VSOCKD__ENVELOPE__BODY_FAIL:
		return on_fail(device);
	case VSOCKD__ENVELOPE__BODY_CAPTURE:
		capture_set(&device->capture, fd, envelope->capture->number,
			    envelope->capture->payload_max);
		return 0;
	case VSOCKD__ENVELOPE__BODY_HANDOVER_RESUME:
		handover_resume(device);
		return 0;
	case VSOCKD__ENVELOPE__BODY_HANDOVER_POOL:
		return handover_begin_taking(device, envelope->handover_pool->size, fd);
	case VSOCKD__ENVELOPE__BODY_HANDOVER_SOCKETS:
		return 0;
	case VSOCKD__ENVELOPE__BODY_HANDOVER_CHECK:
		return handover_check(device);
	default:
		return IS_NO_COMMAND;
	}
}

/* false: the front does not keep to the protocol. Owns fd. */
static bool dispatch(struct device *device, const Vsockd__Envelope *envelope, int fd)
{
	uint32_t ring = named_ring(envelope);
	int status;

	if (ring >= RINGS)
		return false;
	switch (envelope->body_case) {
	case VSOCKD__ENVELOPE__BODY_RING_STOP:
		control_done(device, envelope->sequence, 0, ring_stop(&device->rings[ring]));
		return true;
	case VSOCKD__ENVELOPE__BODY_HANDOVER:
		/* Done is said behind all that a successor has to know. */
		status = handover_freeze(device, envelope->sequence);
		if (status < 0)
			control_done(device, envelope->sequence, status, 0);
		return true;
	case VSOCKD__ENVELOPE__BODY_HANDOVER_COMMIT:
		control_done(device, envelope->sequence, 0, 0);
		return handover_commit(device);
	default:
		status = obey(device, envelope, fd);
		if (status == IS_NO_COMMAND)
			return hear(device, envelope, fd);
		control_done(device, envelope->sequence, status, 0);
		return true;
	}
}

static enum message_state message_state(const struct device *device)
{
	if (!device->is_assigned)
		return MESSAGE_SPARE;
	switch (device->handover.phase) {
	case HANDOVER_NONE:
		return MESSAGE_ASSIGNED;
	case HANDOVER_TAKING:
		return MESSAGE_TAKING;
	default:
		return MESSAGE_FROZEN;
	}
}

bool control_receive(struct device *device)
{
	uint32_t n_max =
		device->handover.phase == HANDOVER_TAKING ? ROUND_MESSAGES_TAKING : ROUND_MESSAGES;

	for (uint32_t i = 0; i < n_max && !device->has_done; i++) {
		const Vsockd__Envelope *envelope;
		struct channel_packet packet;
		const char *reason;
		int r;

		r = channel_receive(device->channel, &packet);
		if (r == CHANNEL_E_AGAIN)
			return true;
		if (r != 0)
			return false;
		envelope =
			message_decode(&packet, MESSAGE_TO_WORKER, message_state(device), &reason);
		/* The process ends then, and with it every fd. */
		if (!envelope || !dispatch(device, envelope, packet.fd))
			return false;
		/* A kick is answered when what it tells of is done: behind this round. */
		if (device->has_done && envelope->body_case != VSOCKD__ENVELOPE__BODY_RING_KICK &&
		    envelope->body_case != VSOCKD__ENVELOPE__BODY_RING_START &&
		    !control_flush(device))
			return false;
	}
	return true;
}
