/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/device_rig.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

/* Ring i lies at i * RING_SPACE; rings of up to 4096 entries fit. */
#define RING_SPACE   UINT64_C(0x40000)
#define AVAIL_OFFSET UINT64_C(0x20000)
#define USED_OFFSET  UINT64_C(0x30000)
#define RX_START     UINT64_C(0x100000)
#define TX_START     UINT64_C(0x1000000)

#define EVENTS_MAX 64
#define ROUNDS_MAX 100000

struct rig rig;
void (*rig_after_run)(void);

/* ---- start and end ---- */

void rig_start_device(struct device *device, int *ret_front, int *ret_epoll, int *ret_pool)
{
	const struct rig_options *options = &rig.options;
	uint64_t pool_len;
	int channel[2];
	void *pool;

	memset(device, 0, sizeof(*device));
	pool_len = device_pool_len(options->n_connections, options->buffer_size);
	*ret_pool = memfd_create("connections", MFD_CLOEXEC);
	assert_true(*ret_pool >= 0);
	assert_int_equal(ftruncate(*ret_pool, (off_t)pool_len), 0);
	pool = mmap(NULL, pool_len, PROT_READ | PROT_WRITE, MAP_SHARED, *ret_pool, 0);
	assert_ptr_not_equal(pool, MAP_FAILED);
	assert_true(buffer_pool_init(&device->pool, pool, pool_len));
	assert_true(connections_init(&device->connections, options->n_connections));
	assert_true(handover_sockets_init(&device->sockets, RIG_ENDPOINTS));

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel), 0);
	*ret_front = channel[0];
	*ret_epoll = epoll_create1(EPOLL_CLOEXEC);
	assert_true(*ret_epoll >= 0);
	assert_true(device_init(device, channel[1], *ret_epoll));
	device->state.capacity = transfer_len(device->connections.n_max + ORPHANS_MAX) + 1;
	device->state.bytes = malloc(device->state.capacity);
	assert_non_null(device->state.bytes);
}

void rig_limit(const struct rig_options *options)
{
	Vsockd__Limits limits = VSOCKD__LIMITS__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	void (*after_run)(void) = rig.after_run;

	rig.after_run = NULL; /* no front hands over in the middle of this */
	rig.options.bytes_per_second = options->bytes_per_second;
	rig.options.buffer_memory = options->buffer_memory;
	rig.options.n_incoming = options->n_incoming;
	memcpy(rig.options.incoming, options->incoming, sizeof(options->incoming));
	limits.bytes_per_second = options->bytes_per_second;
	limits.buffer_memory = options->buffer_memory;
	limits.n_ranges = options->n_incoming;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_LIMITS;
	envelope.limits = &limits;
	assert_int_equal(rig_command(&envelope, -1), 0);
	for (uint32_t i = 0; i < options->n_incoming; i++) {
		Vsockd__PortRange range = VSOCKD__PORT_RANGE__INIT;

		range.first = options->incoming[i].first;
		range.last = options->incoming[i].last;
		range.is_denied = options->incoming[i].is_denied;
		envelope.body_case = VSOCKD__ENVELOPE__BODY_PORT_RANGE;
		envelope.port_range = &range;
		assert_int_equal(rig_command(&envelope, -1), 0);
	}
	rig.after_run = after_run;
}

static void assign(void)
{
	const struct rig_options *options = &rig.options;
	Vsockd__Assign assign = VSOCKD__ASSIGN__INIT;
	Vsockd__Features features = VSOCKD__FEATURES__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	assign.guest_cid = RIG_CID;
	assign.buffer_size = options->buffer_size;
	assign.max_connections = options->n_connections;
	assign.max_handshakes = options->n_handshakes;
	assign.first_port = 0x12345678;
	assign.message_size = options->message_size;
	assign.is_quiet = options->is_quiet;
	assign.wait_ms = options->wait_ms;
	assign.poll_us = options->poll_us;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_ASSIGN;
	envelope.assign = &assign;
	assert_int_equal(rig_command(&envelope, -1), 0);

	rig_limit(options);
	features.features = options->features;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_FEATURES;
	envelope.features = &features;
	assert_int_equal(rig_command(&envelope, -1), 0);
}

static void make_rings(const struct rig_options *options)
{
	for (uint32_t i = 0; i < RINGS; i++) {
		struct rig_ring *ring = &rig.rings[i];

		ring->num = (uint16_t)options->num;
		ring->desc = i * RING_SPACE;
		ring->avail = ring->desc + AVAIL_OFFSET;
		ring->used = ring->desc + USED_OFFSET;
		ring->kick = options->is_polled ? -1 : eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		ring->call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		ring->error = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	}
}

static void set_call_and_error(uint32_t index)
{
	Vsockd__RingCall call = VSOCKD__RING_CALL__INIT;
	Vsockd__RingError error = VSOCKD__RING_ERROR__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	call.ring = index;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_CALL;
	envelope.ring_call = &call;
	assert_int_equal(rig_command(&envelope, rig.rings[index].call), 0);

	error.ring = index;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_ERROR;
	envelope.ring_error = &error;
	assert_int_equal(rig_command(&envelope, rig.rings[index].error), 0);
}

void rig_start(const struct rig_options *options)
{
	struct rig_options chosen = *options;

	chosen.n_connections = chosen.n_connections ? chosen.n_connections : 16;
	chosen.n_handshakes = chosen.n_handshakes ? chosen.n_handshakes : 8;
	chosen.buffer_size = chosen.buffer_size ? chosen.buffer_size : 64 * 1024;
	chosen.message_size = chosen.message_size ? chosen.message_size : 200 * 1024;
	chosen.num = chosen.num ? chosen.num : 128;

	signal(SIGPIPE, SIG_IGN); /* as policy_enter() leaves it to a worker */
	memset(&rig, 0, sizeof(rig));
	rig.random = 1;
	rig.next_rx = RX_START;
	rig.next_tx = TX_START;
	for (size_t i = 0; i < RIG_ENDPOINTS; i++)
		rig.copies[i] = -1;
	rig.memory_fd = memfd_create("guest", MFD_CLOEXEC);
	assert_true(rig.memory_fd >= 0);
	assert_int_equal(ftruncate(rig.memory_fd, (off_t)RIG_MEMORY_SIZE), 0);
	rig.memory =
		mmap(NULL, RIG_MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, rig.memory_fd, 0);
	assert_ptr_not_equal(rig.memory, MAP_FAILED);

	rig.options = chosen;
	rig.has_run = true;
	make_rings(&chosen);
	rig_start_device(&rig.device, &rig.front, &rig.epoll, &rig.pool_fd);
	rig.is_attached = true;
	assign();
	assert_int_equal(rig_memory_add(0, RIG_MEMORY_SIZE, false), 0);
	for (uint32_t i = 0; i < RINGS; i++)
		set_call_and_error(i);
	for (uint32_t i = 0; i < RING_EVENT && !chosen.is_idle; i++) {
		rig_ring_enable(i, true);
		assert_int_equal(rig_ring_start(i, 0, false), 0);
	}
	rig.has_run = false;
	rig.after_run = rig_after_run;
}

static void close_if_open(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void rig_end_device(struct device *device, int *front, int *epoll, int *pool)
{
	for (uint32_t i = 0; i < device->connections.n_touched; i++)
		if (device->connections.all[i].state != CONNECTION_FREE)
			close_if_open(&device->connections.all[i].fd);
	for (size_t i = 0; i < RINGS; i++) {
		close_if_open(&device->rings[i].kick);
		close_if_open(&device->rings[i].call);
		close_if_open(&device->rings[i].error);
	}
	if (device->log.bits)
		munmap(device->log.mapping, device->log.mapping_len);
	close_if_open(&device->log.fd);
	guest_memory_commit(&device->memory); /* nothing staged: all go */
	guest_memory_commit(&device->memory);
	munmap(device->pool.start, (size_t)device->pool.n_chunks * BUFFER_CHUNK_LEN);
	free(device->pool.next);
	free(device->state.bytes);
	free(device->connections.all);
	free(device->connections.buckets);
	handover_sockets_close(&device->sockets);
	free(device->sockets.all);
	close_if_open(&device->channel);
	close_if_open(front);
	close_if_open(epoll);
	close_if_open(pool);
}

void rig_end(void)
{
	rig_end_device(&rig.device, &rig.front, &rig.epoll, &rig.pool_fd);
	for (size_t i = 0; i < RINGS; i++) {
		close_if_open(&rig.rings[i].kick);
		close_if_open(&rig.rings[i].call);
		close_if_open(&rig.rings[i].error);
	}
	for (size_t i = 0; i < RIG_ENDPOINTS; i++)
		close_if_open(&rig.copies[i]);
	munmap(rig.memory, RIG_MEMORY_SIZE);
	close_if_open(&rig.memory_fd);
}

/* ---- the loop ---- */

static void run_until_done(void)
{
	struct epoll_event events[EVENTS_MAX];
	bool has_more = true;

	for (uint32_t i = 0; i < ROUNDS_MAX; i++) {
		int n = epoll_wait(rig.epoll, events, EVENTS_MAX, 0);

		assert_true(n >= 0);
		if (n == 0 && !has_more)
			return;
		for (int k = 0; k < n; k++)
			rig.is_attached &= device_note_event(&rig.device, events[k].data.u64,
							     events[k].events);
		if (n < EVENTS_MAX)
			device_note_look(&rig.device);
		has_more = device_pump(&rig.device);
		rig.is_attached &= control_flush(&rig.device);
		rig_collect();
		if (!rig.is_attached)
			return;
	}
	fail_msg("the worker spins");
}

void rig_run(void)
{
	run_until_done();
	if (rig.after_run && rig.is_attached && !rig.has_run) {
		rig.has_run = true;
		rig.after_run();
		rig.has_run = false;
	}
}

void rig_sleep(uint64_t ms)
{
	device_set_time(&rig.device, rig.device.now_us + 1000 * ms);
	rig_run();
}

uint32_t rig_random(void)
{
	rig.random = rig.random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(rig.random >> 33);
}

uint8_t rig_byte(uint32_t stream, uint64_t at)
{
	return (uint8_t)((at * 167 + (at >> 8) * 13 + stream * 59) ^ (at >> 16));
}

/* ---- the front ---- */

void rig_post(const Vsockd__Envelope *envelope, int fd)
{
	struct channel_packet packet;

	message_encode(envelope, fd, &packet);
	assert_int_equal(channel_send(rig.front, &packet), 0);
}

int rig_command(Vsockd__Envelope *envelope, int fd)
{
	envelope->sequence = ++rig.sequence;
	rig.has_done = false;
	rig_post(envelope, fd);
	rig_run();
	assert_true(rig.has_done);
	return rig.done_status;
}

int rig_command_of(ProtobufCMessage *body, int fd)
{
	Vsockd__Envelope envelope;

	message_wrap(body, &envelope);
	return rig_command(&envelope, fd);
}

static void on_closed(uint32_t endpoint)
{
	assert_true(endpoint < RIG_ENDPOINTS && rig.copies[endpoint] >= 0);
	close_if_open(&rig.copies[endpoint]);
}

static void note_counters(const Vsockd__Counters *counters)
{
	const uint64_t values[COUNTERS_PER_MESSAGE] = {
		counters->value0, counters->value1, counters->value2, counters->value3,
		counters->value4, counters->value5, counters->value6,
	};

	assert_int_equal(counters->first, rig.n_counters);
	for (uint32_t i = 0; i < COUNTERS_PER_MESSAGE; i++) {
		if (rig.n_counters < COUNTER_MAX)
			rig.counters[rig.n_counters++] = values[i];
		else
			assert_int_equal(values[i], 0);
	}
}

void rig_note_told(const Vsockd__Envelope *envelope)
{
	struct rig_told told = {.type = envelope->body_case};

	switch (envelope->body_case) {
	case VSOCKD__ENVELOPE__BODY_DONE:
		assert_int_equal(envelope->done->sequence, rig.sequence);
		assert_false(rig.has_done);
		rig.has_done = true;
		rig.done_status = envelope->done->status;
		rig.done_value = envelope->done->value;
		return;
	case VSOCKD__ENVELOPE__BODY_CONNECT:
		told.values[0] = envelope->connect->request;
		told.values[1] = envelope->connect->port;
		told.values[2] = envelope->connect->type;
		told.values[3] = envelope->connect->guest_port;
		told.values[4] = envelope->connect->cid;
		break;
	case VSOCKD__ENVELOPE__BODY_CANCEL:
		told.values[0] = envelope->cancel->request;
		break;
	case VSOCKD__ENVELOPE__BODY_ANSWERED:
		told.values[0] = envelope->answered->endpoint;
		break;
	case VSOCKD__ENVELOPE__BODY_NOTIFY:
		told.values[0] = envelope->notify->ring;
		told.values[1] = envelope->notify->is_error != 0;
		told.values[2] = rig.has_done; /* was it said behind the answer? */
		break;
	case VSOCKD__ENVELOPE__BODY_OPENED:
		told.values[0] = envelope->opened->endpoint;
		told.values[1] = envelope->opened->guest_port;
		told.values[2] = envelope->opened->host_port;
		break;
	case VSOCKD__ENVELOPE__BODY_CLOSED:
		told.values[0] = envelope->closed->endpoint;
		told.values[1] = envelope->closed->is_reset != 0;
		on_closed(envelope->closed->endpoint);
		break;
	case VSOCKD__ENVELOPE__BODY_REPORT:
		told.values[0] = envelope->report->event;
		told.values[1] = envelope->report->first;
		told.values[2] = envelope->report->second;
		told.values[3] = envelope->report->third;
		break;
	case VSOCKD__ENVELOPE__BODY_STATE_CONNECTION:
		told.values[0] = envelope->state_connection->guest_port;
		told.values[1] = envelope->state_connection->host_port;
		told.values[2] = envelope->state_connection->type;
		break;
	case VSOCKD__ENVELOPE__BODY_STATE_INFO:
		told.values[0] = envelope->state_info->guest_cid;
		told.values[1] = envelope->state_info->features;
		told.values[2] = envelope->state_info->flags;
		break;
	case VSOCKD__ENVELOPE__BODY_STATE_DONE:
		told.values[0] = envelope->state_done->is_good ? 1 : 0;
		told.values[1] = envelope->state_done->reason;
		break;
	case VSOCKD__ENVELOPE__BODY_RESET_ANNOUNCED:
		told.values[0] = envelope->reset_announced->used;
		break;
	case VSOCKD__ENVELOPE__BODY_RESET_SENT:
	case VSOCKD__ENVELOPE__BODY_RESET_HANDLED:
		break;
	case VSOCKD__ENVELOPE__BODY_COUNTERS:
		note_counters(envelope->counters);
		return;
	case VSOCKD__ENVELOPE__BODY_CONNECTION_INFO:
		told.values[0] = envelope->connection_info->endpoint;
		told.values[1] = envelope->connection_info->state;
		told.values[2] = envelope->connection_info->to_guest;
		told.values[3] = envelope->connection_info->from_guest;
		break;
	case VSOCKD__ENVELOPE__BODY_CONNECTIONS_END:
		told.values[0] = envelope->connections_end->query;
		told.values[1] = envelope->connections_end->next;
		break;
	default:
		fail_msg("the worker says %s", message_name(envelope->body_case));
	}
	assert_true(rig.n_told < sizeof(rig.told) / sizeof(rig.told[0]));
	rig.told[rig.n_told++] = told;
}

void rig_collect(void)
{
	struct channel_packet packet;
	const char *reason = "";

	while (channel_receive(rig.front, &packet) == 0) {
		const Vsockd__Envelope *envelope =
			message_decode(&packet, MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, &reason);

		if (!envelope)
			fail_msg("%s", reason);
		rig_note_told(envelope);
	}
}

static bool take_told(Vsockd__Envelope__BodyCase type, bool is_report, uint64_t event,
		      struct rig_told *ret)
{
	for (uint32_t i = 0; i < rig.n_told; i++) {
		if (rig.told[i].type != type || (is_report && rig.told[i].values[0] != event))
			continue;
		if (ret)
			*ret = rig.told[i];
		rig.n_told--;
		memmove(&rig.told[i], &rig.told[i + 1], (rig.n_told - i) * sizeof(rig.told[0]));
		return true;
	}
	return false;
}

bool rig_take_told(Vsockd__Envelope__BodyCase type, struct rig_told *ret)
{
	return take_told(type, false, 0, ret);
}

void rig_expect_told(Vsockd__Envelope__BodyCase type, struct rig_told *ret)
{
	if (!rig_take_told(type, ret))
		fail_msg("the worker did not say %s", message_name(type));
}

void rig_expect_report(enum report_event event, struct rig_told *ret)
{
	if (!take_told(VSOCKD__ENVELOPE__BODY_REPORT, true, event, ret))
		fail_msg("the worker did not report %d", (int)event);
}

bool rig_is_closed(uint32_t endpoint)
{
	return rig.copies[endpoint] < 0;
}

int rig_ring_start(uint32_t ring, uint16_t avail_idx, bool from_used_index)
{
	Vsockd__RingStart start = VSOCKD__RING_START__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	const struct rig_ring *driver = &rig.rings[ring];

	start.ring = ring;
	start.num = driver->num;
	start.desc = RIG_USER_BASE + driver->desc;
	start.avail = RIG_USER_BASE + driver->avail;
	start.used = RIG_USER_BASE + driver->used;
	start.ring_base = avail_idx;
	start.from_used_index = from_used_index;
	start.in_band = rig.in_band;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_START;
	envelope.ring_start = &start;
	return rig_command(&envelope, rig.in_band & RING_KICKED_IN_BAND ? -1 : driver->kick);
}

uint16_t rig_ring_stop(uint32_t ring)
{
	Vsockd__RingStop stop = VSOCKD__RING_STOP__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	stop.ring = ring;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_STOP;
	envelope.ring_stop = &stop;
	assert_int_equal(rig_command(&envelope, -1), 0);
	return (uint16_t)rig.done_value;
}

void rig_ring_enable(uint32_t ring, bool is_enabled)
{
	Vsockd__RingEnable enable = VSOCKD__RING_ENABLE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	enable.ring = ring;
	enable.is_enabled = is_enabled;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_ENABLE;
	envelope.ring_enable = &enable;
	assert_int_equal(rig_command(&envelope, -1), 0);
}

void rig_stop_rings(void)
{
	/* What the device did not use, it did not take either. */
	assert_int_equal(rig_ring_stop(RING_RX), rig_used_index(RING_RX));
	assert_int_equal(rig_ring_stop(RING_TX), rig_used_index(RING_TX));
}

void rig_start_rings(void)
{
	for (uint32_t i = 0; i < RING_EVENT; i++)
		assert_int_equal(rig_ring_start(i, rig_used_index(i), false), 0);
}

int rig_memory_add(uint64_t mmap_offset, uint64_t size, bool is_staged)
{
	Vsockd__MemoryAdd add = VSOCKD__MEMORY_ADD__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	add.guest_address = RIG_GUEST_BASE + mmap_offset;
	add.user_address = RIG_USER_BASE + mmap_offset;
	add.size = size;
	add.mmap_offset = mmap_offset;
	add.alignment = 4096;
	add.is_staged = is_staged;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_MEMORY_ADD;
	envelope.memory_add = &add;
	return rig_command(&envelope, rig.memory_fd);
}

int rig_memory_commit(void)
{
	Vsockd__MemoryCommit commit = VSOCKD__MEMORY_COMMIT__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	envelope.body_case = VSOCKD__ENVELOPE__BODY_MEMORY_COMMIT;
	envelope.memory_commit = &commit;
	return rig_command(&envelope, -1);
}

void rig_reset(void)
{
	Vsockd__Reset reset = VSOCKD__RESET__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	envelope.body_case = VSOCKD__ENVELOPE__BODY_RESET;
	envelope.reset = &reset;
	assert_int_equal(rig_command(&envelope, -1), 0);
}

static uint16_t type_of(const struct rig_peer *peer)
{
	return peer->type ? peer->type : PACKET_TYPE_STREAM;
}

uint32_t rig_endpoint_of(int worker)
{
	uint32_t endpoint = rig.n_endpoints++;

	assert_true(endpoint < RIG_ENDPOINTS);
	rig.copies[endpoint] = worker;
	return endpoint;
}

uint32_t rig_endpoint(uint16_t type, int *ret_host, int *ret_worker)
{
	int socket_type = type == PACKET_TYPE_SEQPACKET ? SOCK_SEQPACKET : SOCK_STREAM;
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, socket_type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair),
			 0);
	*ret_host = pair[0];
	*ret_worker = pair[1];
	return rig_endpoint_of(pair[1]);
}

static uint32_t accept_host(uint16_t type, int *ret_host, bool is_direct, uint32_t guest_port)
{
	Vsockd__Accepted accepted = VSOCKD__ACCEPTED__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	int worker;

	accepted.endpoint = rig_endpoint(type, ret_host, &worker);
	accepted.type = type;
	accepted.cid = PACKET_HOST_CID;
	accepted.is_direct = is_direct;
	accepted.guest_port = guest_port;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_ACCEPTED;
	envelope.accepted = &accepted;
	rig_post(&envelope, worker);
	return accepted.endpoint;
}

uint32_t rig_accept(int *ret_host)
{
	return accept_host(PACKET_TYPE_STREAM, ret_host, false, 0);
}

uint32_t rig_accept_of(uint16_t type, int *ret_host)
{
	return accept_host(type, ret_host, false, 0);
}

uint32_t rig_accept_direct(int *ret_host, uint32_t guest_port)
{
	return accept_host(PACKET_TYPE_STREAM, ret_host, true, guest_port);
}

void rig_sibling_asks(struct rig_peer *peer)
{
	Vsockd__Accepted accepted = VSOCKD__ACCEPTED__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	int worker;

	accepted.endpoint = rig_endpoint(type_of(peer), &peer->host, &worker);
	accepted.cid = peer->cid;
	accepted.port = peer->host_port;
	accepted.guest_port = peer->guest_port;
	accepted.type = type_of(peer);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_ACCEPTED;
	envelope.accepted = &accepted;
	rig_post(&envelope, worker);
	peer->endpoint = accepted.endpoint;
	peer->buf_alloc = RIG_GUEST_BUFFER;
}

void rig_peer_reset(const struct rig_peer *peer)
{
	Vsockd__PeerReset reset = VSOCKD__PEER_RESET__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	reset.endpoint = peer->endpoint;
	reset.cid = peer->cid;
	reset.port = peer->host_port;
	reset.guest_port = peer->guest_port;
	reset.type = type_of(peer);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_PEER_RESET;
	envelope.peer_reset = &reset;
	rig_post(&envelope, -1);
}

static void answer_connect(const struct rig_peer *peer, int status, int fd, bool is_pending)
{
	Vsockd__Connected connected = VSOCKD__CONNECTED__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	connected.request = peer->request;
	connected.endpoint = peer->endpoint;
	connected.status = status;
	connected.is_pending = is_pending;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_CONNECTED;
	envelope.connected = &connected;
	rig_post(&envelope, fd);
}

void rig_connected(struct rig_peer *peer)
{
	int worker;

	peer->endpoint = rig_endpoint(type_of(peer), &peer->host, &worker);
	answer_connect(peer, 0, worker, false);
}

void rig_connected_later(const struct rig_peer *peer, int worker)
{
	answer_connect(peer, 0, worker, true);
}

void rig_refused(struct rig_peer *peer, int status)
{
	answer_connect(peer, status, -1, false);
}

/* ---- the driver ---- */

uint8_t *rig_at(uint64_t guest_address)
{
	assert_true(guest_address - RIG_GUEST_BASE < RIG_MEMORY_SIZE);
	return rig.memory + (guest_address - RIG_GUEST_BASE);
}

static void store16(uint64_t offset, uint16_t value)
{
	__atomic_store_n((uint16_t *)(void *)(rig.memory + offset), value, __ATOMIC_RELEASE);
}

static uint16_t load16(uint64_t offset)
{
	return __atomic_load_n((uint16_t *)(void *)(rig.memory + offset), __ATOMIC_ACQUIRE);
}

uint16_t rig_put_chain(uint32_t index, const struct rig_buffer *buffers, size_t n)
{
	struct rig_ring *ring = &rig.rings[index];
	uint16_t head = ring->next_desc;

	assert_true(n <= ring->num);
	for (size_t i = 0; i < n; i++) {
		uint8_t *place = rig.memory + ring->desc + 16 * (size_t)ring->next_desc;
		uint16_t flags = buffers[i].flags;

		ring->next_desc = (uint16_t)((ring->next_desc + 1) % ring->num);
		if (i + 1 < n)
			flags |= RIG_NEXT;
		memcpy(place, &buffers[i].guest_address, 8);
		memcpy(place + 8, &buffers[i].len, 4);
		memcpy(place + 12, &flags, 2);
		memcpy(place + 14, &ring->next_desc, 2);
	}
	store16(ring->avail + 4 + 2 * (uint64_t)(ring->avail_idx % ring->num), head);
	store16(ring->avail + 2, ++ring->avail_idx);
	return head;
}

void rig_offer(uint32_t n, uint32_t len)
{
	for (uint32_t i = 0; i < n; i++) {
		struct rig_buffer buffer;

		if (rig.next_rx + len > TX_START)
			rig.next_rx = RX_START;
		buffer = (struct rig_buffer){RIG_GUEST_BASE + rig.next_rx, len, RIG_WRITE};
		rig.next_rx += (len + 63) & ~63u;
		rig_put_chain(RING_RX, &buffer, 1);
	}
}

uint64_t rig_place(size_t len)
{
	uint64_t place;

	if (rig.next_tx + len > RIG_MEMORY_SIZE)
		rig.next_tx = TX_START;
	place = rig.next_tx;
	rig.next_tx += len;
	return RIG_GUEST_BASE + place;
}

void rig_put(const struct packet_header *header, const void *payload)
{
	struct rig_buffer buffers[2];
	size_t n = 1;

	buffers[0] = (struct rig_buffer){rig_place(PACKET_HEADER_LEN), PACKET_HEADER_LEN, 0};
	memcpy(rig_at(buffers[0].guest_address), header, PACKET_HEADER_LEN);
	if (payload) {
		buffers[n++] = (struct rig_buffer){rig_place(header->len), header->len, 0};
		memcpy(rig_at(buffers[1].guest_address), payload, header->len);
	}
	rig_put_chain(RING_TX, buffers, n);
}

void rig_send(const struct packet_header *header, const void *payload)
{
	rig_put(header, payload);
	rig_run();
}

uint16_t rig_used_index(uint32_t ring)
{
	return load16(rig.rings[ring].used + 2);
}

static bool take_used(struct rig_ring *ring, uint32_t *ret_id, uint32_t *ret_len)
{
	const uint8_t *element;

	if (ring->used_idx == load16(ring->used + 2))
		return false;
	assert_true((uint16_t)(ring->avail_idx - ring->used_idx) > 0);
	element = rig.memory + ring->used + 4 + 8 * (size_t)(ring->used_idx % ring->num);
	memcpy(ret_id, element, 4);
	memcpy(ret_len, element + 4, 4);
	/* In the order in which they were offered. */
	assert_int_equal(*ret_id,
			 load16(ring->avail + 4 + 2 * (uint64_t)(ring->used_idx % ring->num)));
	ring->used_idx++;
	return true;
}

uint32_t rig_n_sent(void)
{
	uint32_t n = 0, id, len;

	while (take_used(&rig.rings[RING_TX], &id, &len)) {
		assert_int_equal(len, 0);
		n++;
	}
	return n;
}

/* Gather what the device wrote into the chain with this head. */
static uint32_t read_chain(const struct rig_ring *ring, uint32_t id, uint8_t *bytes, uint32_t len)
{
	uint32_t done = 0;
	uint16_t flags, next = (uint16_t)id;

	do {
		const uint8_t *descriptor = rig.memory + ring->desc + 16 * (size_t)next;
		uint64_t guest_address;
		uint32_t n;

		memcpy(&guest_address, descriptor, 8);
		memcpy(&n, descriptor + 8, 4);
		memcpy(&flags, descriptor + 12, 2);
		memcpy(&next, descriptor + 14, 2);
		n = n < len - done ? n : len - done;
		memcpy(bytes + done, rig_at(guest_address), n);
		done += n;
	} while ((flags & RIG_NEXT) && done < len);
	return done;
}

bool rig_has_packet(void)
{
	return rig_used_index(RING_RX) != rig.rings[RING_RX].used_idx;
}

bool rig_take(struct rig_packet *ret)
{
	static uint8_t bytes[PACKET_HEADER_LEN + PACKET_PAYLOAD_MAX];
	struct rig_ring *ring = &rig.rings[RING_RX];
	uint32_t id, len;

	if (!take_used(ring, &id, &len))
		return false;
	ret->used_len = len;
	memset(&ret->header, 0, sizeof(ret->header));
	if (len == 0)
		return true;
	assert_in_range(len, PACKET_HEADER_LEN, sizeof(bytes));
	assert_int_equal(read_chain(ring, id, bytes, len), len);
	memcpy(&ret->header, bytes, PACKET_HEADER_LEN);
	assert_int_equal(ret->header.len, len - PACKET_HEADER_LEN);
	assert_int_equal(ret->header.dst_cid, RIG_CID);
	memcpy(ret->payload, bytes + PACKET_HEADER_LEN, ret->header.len);
	return true;
}

static uint32_t cid_of(const struct rig_peer *peer)
{
	return peer->cid ? peer->cid : PACKET_HOST_CID;
}

const struct rig_packet *rig_expect(const struct rig_peer *peer, enum packet_op op)
{
	static struct rig_packet packet;
	uint32_t window;

	if (!rig_take(&packet))
		fail_msg("no packet, and %d was to come", (int)op);
	assert_int_equal(packet.header.op, op);
	assert_int_equal(packet.header.src_cid, cid_of(peer));
	assert_int_equal(packet.header.src_port, peer->host_port);
	assert_int_equal(packet.header.dst_port, peer->guest_port);
	assert_int_equal(packet.header.type, type_of(peer));
	window = host_window(&rig.device, type_of(peer), rig.device.buffer_size);
	if (op != PACKET_OP_RST && rig.options.buffer_memory == 0)
		assert_int_equal(packet.header.buf_alloc, window);
	if (op != PACKET_OP_RST)
		assert_in_range(packet.header.buf_alloc, 1, window);
	return &packet;
}

void rig_expect_no_packet(void)
{
	static struct rig_packet packet;

	if (rig_take(&packet))
		fail_msg("operation %u out of nothing", packet.header.op);
}

void rig_expect_rst(uint64_t src_cid, uint32_t src_port, uint32_t dst_port, uint16_t type)
{
	static struct rig_packet packet;

	assert_true(rig_take(&packet));
	assert_int_equal(packet.header.op, PACKET_OP_RST);
	assert_int_equal(packet.header.src_cid, src_cid);
	assert_int_equal(packet.header.src_port, src_port);
	assert_int_equal(packet.header.dst_port, dst_port);
	assert_int_equal(packet.header.type, type);
	assert_int_equal(packet.header.len, 0);
}

uint64_t rig_calls(uint32_t ring)
{
	uint64_t n = 0;

	return read(rig.rings[ring].call, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

/* ---- guest and host program ---- */

struct packet_header rig_header(const struct rig_peer *peer, enum packet_op op)
{
	return (struct packet_header){
		.src_cid = RIG_CID,
		.dst_cid = cid_of(peer),
		.src_port = peer->guest_port,
		.dst_port = peer->host_port,
		.type = type_of(peer),
		.op = (uint16_t)op,
		.buf_alloc = peer->buf_alloc,
		.fwd_cnt = peer->fwd_cnt,
	};
}

void rig_say(const struct rig_peer *peer, enum packet_op op, uint32_t flags)
{
	struct packet_header header = rig_header(peer, op);

	header.flags = flags;
	rig_send(&header, NULL);
}

void rig_rw_flags(const struct rig_peer *peer, const void *bytes, uint32_t len, uint32_t flags)
{
	struct packet_header header = rig_header(peer, PACKET_OP_RW);

	header.len = len;
	header.flags = flags;
	rig_send(&header, len > 0 ? bytes : NULL);
}

void rig_rw(const struct rig_peer *peer, const void *bytes, uint32_t len)
{
	rig_rw_flags(peer, bytes, len, 0);
}

static struct rig_peer ask(uint16_t type, uint32_t guest_port, uint32_t cid, uint32_t host_port)
{
	struct rig_peer peer = {
		.host = -1,
		.cid = cid,
		.type = type,
		.guest_port = guest_port,
		.host_port = host_port,
		.buf_alloc = RIG_GUEST_BUFFER,
	};
	struct rig_told told = {0};

	rig_say(&peer, PACKET_OP_REQUEST, 0);
	rig_expect_told(VSOCKD__ENVELOPE__BODY_CONNECT, &told);
	peer.request = (uint32_t)told.values[0];
	assert_int_equal(told.values[1], host_port);
	assert_int_equal(told.values[2], type);
	assert_int_equal(told.values[3], guest_port);
	assert_int_equal(told.values[4], cid);
	return peer;
}

struct rig_peer rig_ask(uint32_t guest_port, uint32_t host_port)
{
	return ask(PACKET_TYPE_STREAM, guest_port, PACKET_HOST_CID, host_port);
}

struct rig_peer rig_ask_sibling(uint32_t guest_port, uint32_t cid, uint32_t host_port)
{
	return ask(PACKET_TYPE_STREAM, guest_port, cid, host_port);
}

static struct rig_peer connected(struct rig_peer peer)
{
	rig_connected(&peer);
	rig_run();
	rig_expect(&peer, PACKET_OP_RESPONSE);
	return peer;
}

struct rig_peer rig_guest_connects(uint32_t guest_port, uint32_t host_port)
{
	return connected(rig_ask(guest_port, host_port));
}

struct rig_peer rig_guest_connects_messages(uint32_t guest_port, uint32_t host_port)
{
	return connected(ask(PACKET_TYPE_SEQPACKET, guest_port, PACKET_HOST_CID, host_port));
}

static struct rig_peer host_asks(uint16_t type, uint32_t guest_port)
{
	static struct rig_packet packet;
	struct rig_peer peer = {
		.type = type,
		.guest_port = guest_port,
		.buf_alloc = RIG_GUEST_BUFFER,
	};
	char line[32];
	int len = snprintf(line, sizeof(line), "CONNECT %u\n", guest_port);

	peer.endpoint = rig_accept_of(type, &peer.host);
	rig_host_writes(&peer, line, (size_t)len);
	rig_run();
	assert_true(rig_take(&packet));
	assert_int_equal(packet.header.op, PACKET_OP_REQUEST);
	assert_int_equal(packet.header.dst_port, guest_port);
	peer.host_port = packet.header.src_port;
	return peer;
}

struct rig_peer rig_host_asks(uint32_t guest_port)
{
	return host_asks(PACKET_TYPE_STREAM, guest_port);
}

static struct rig_peer answered(struct rig_peer peer)
{
	char line[32];
	int len = snprintf(line, sizeof(line), "OK %u\n", peer.host_port);

	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	rig_host_reads(&peer, line, (size_t)len);
	return peer;
}

struct rig_peer rig_host_connects(uint32_t guest_port)
{
	return answered(rig_host_asks(guest_port));
}

struct rig_peer rig_host_connects_messages(uint32_t guest_port)
{
	return answered(host_asks(PACKET_TYPE_SEQPACKET, guest_port));
}

void rig_host_writes(const struct rig_peer *peer, const void *bytes, size_t len)
{
	assert_int_equal(send(peer->host, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
}

void rig_host_reads(const struct rig_peer *peer, const void *bytes, size_t len)
{
	static uint8_t buffer[1 << 20];
	size_t done = 0;

	assert_true(len <= sizeof(buffer));
	while (done < len) {
		ssize_t n = recv(peer->host, buffer + done, len - done, 0);

		if (n <= 0)
			fail_msg("%zu of %zu bytes: %s", done, len, n ? strerror(errno) : "end");
		done += (size_t)n;
		if (done < len)
			rig_run();
	}
	assert_memory_equal(buffer, bytes, len);
}

void rig_host_reads_nothing(const struct rig_peer *peer)
{
	char byte;

	assert_int_equal(recv(peer->host, &byte, 1, 0), -1);
	assert_int_equal(errno, EAGAIN);
}

void rig_host_reads_end(const struct rig_peer *peer)
{
	char byte;

	assert_int_equal(recv(peer->host, &byte, 1, 0), 0);
}

void rig_close_host(struct rig_peer *peer)
{
	close_if_open(&peer->host);
}

void rig_narrow(const struct rig_peer *peer)
{
	int small = 1;

	/* Of a unix socket only the sender's buffer counts. */
	assert_int_equal(setsockopt(rig.copies[peer->endpoint], SOL_SOCKET, SO_SNDBUF, &small,
				    sizeof(small)),
			 0);
	assert_int_equal(setsockopt(peer->host, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
}

void rig_fill(int socket)
{
	static const char bytes[4096];

	while (send(socket, bytes, sizeof(bytes), MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
		;
	assert_int_equal(errno, EAGAIN);
}

uint32_t rig_n_chunks(void)
{
	const struct buffer_pool *pool = &rig.device.pool;
	uint32_t n = pool->n_touched;

	for (uint32_t chunk = pool->first_free; chunk != UINT32_MAX; chunk = pool->next[chunk])
		n--;
	return n;
}

static const struct connection *connection_of(const struct rig_peer *peer)
{
	return connection_find(&rig.device.connections, cid_of(peer), peer->guest_port,
			       peer->host_port, type_of(peer));
}

uint32_t rig_choke(const struct rig_peer *peer, uint32_t stream, uint32_t len)
{
	uint8_t bytes[256];
	uint32_t total = 0, buffered = 0;

	while (buffered < len) {
		uint32_t n = len - buffered < sizeof(bytes) ? len - buffered : sizeof(bytes);

		for (uint32_t i = 0; i < n; i++)
			bytes[i] = rig_byte(stream, total + i);
		rig_rw(peer, bytes, n);
		total += n;
		assert_non_null(connection_of(peer));
		buffered = connection_of(peer)->buffer.len;
	}
	assert_int_equal(buffered, len);
	return total;
}
