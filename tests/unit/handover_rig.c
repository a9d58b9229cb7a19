/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/handover_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static struct device other;
static int other_front = -1, other_epoll = -1, other_pool = -1;

struct rig_worker rig_first = {&rig.device, &rig.front, &rig.epoll, &rig.pool_fd};
struct rig_worker rig_other = {&other, &other_front, &other_epoll, &other_pool};
int rig_log_fd = -1;

void rig_run_worker(const struct rig_worker *worker)
{
	struct epoll_event events[64];
	int n = epoll_wait(*worker->epoll, events, 64, 0);
	bool is_attached = true;

	assert_true(n >= 0);
	for (int i = 0; i < n; i++)
		is_attached &=
			device_note_event(worker->device, events[i].data.u64, events[i].events);
	device_pump(worker->device);
	is_attached &= control_flush(worker->device);
	assert_true(is_attached);
}

static void post_to(const struct rig_worker *worker, const Vsockd__Envelope *envelope, int fd)
{
	struct channel_packet packet;
	int r;

	message_encode(envelope, fd, &packet);
	while ((r = channel_send(*worker->front, &packet)) == CHANNEL_E_AGAIN)
		rig_run_worker(worker);
	assert_int_equal(r, 0);
}

/* The next message of a worker that has one; NULL when it has said everything. */
static Vsockd__Envelope *hear(const struct rig_worker *worker, uint32_t states)
{
	const Vsockd__Envelope *envelope;
	struct channel_packet packet;
	const char *reason = "";

	if (channel_receive(*worker->front, &packet) != 0)
		return NULL;
	envelope = message_decode(&packet, MESSAGE_TO_FRONT, (enum message_state)states, &reason);
	if (!envelope)
		fail_msg("%s", reason);
	return (Vsockd__Envelope *)(uintptr_t)envelope;
}

static bool is_relayed(const Vsockd__Envelope *envelope)
{
	return message_rule(envelope->body_case)->direction == MESSAGE_RELAYED;
}

int rig_command_to(const struct rig_worker *worker, Vsockd__Envelope *envelope, int fd)
{
	const Vsockd__Envelope *answer;

	envelope->sequence = ++rig.sequence;
	post_to(worker, envelope, fd);
	for (uint32_t i = 0; i < 100000; i++) {
		rig_run_worker(worker);
		while ((answer =
				hear(worker, MESSAGE_ASSIGNED | MESSAGE_FROZEN | MESSAGE_TAKING))) {
			if (is_relayed(answer))
				continue; /* of a handover that was given up */
			if (answer->body_case != VSOCKD__ENVELOPE__BODY_DONE) {
				rig_note_told(answer);
				continue;
			}
			if (answer->done->sequence == rig.sequence)
				return answer->done->status;
		}
	}
	fail_msg("no Done");
	return -1;
}

#define COMMAND(worker, upper, lower, type, fd, ...)                                               \
	do {                                                                                       \
		type body = VSOCKD__##upper##__INIT;                                               \
		Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;                                \
		envelope.body_case = VSOCKD__ENVELOPE__BODY_##upper;                               \
		envelope.lower = &body;                                                            \
		__VA_ARGS__;                                                                       \
		assert_int_equal(rig_command_to(worker, &envelope, fd), 0);                        \
	} while (0)

static void tell_assignment(const struct rig_worker *to, const struct rig_worker *from)
{
	COMMAND(to, ASSIGN, assign, Vsockd__Assign, -1, body.guest_cid = RIG_CID;
		body.buffer_size = rig.options.buffer_size;
		body.max_connections = rig.options.n_connections;
		body.max_handshakes = rig.options.n_handshakes; body.first_port = 77;
		body.message_size = rig.options.message_size; body.is_quiet = rig.options.is_quiet;
		body.wait_ms = rig.options.wait_ms);
	COMMAND(to, LIMITS, limits, Vsockd__Limits, -1,
		body.bytes_per_second = rig.options.bytes_per_second;
		body.buffer_memory = rig.options.buffer_memory;
		body.n_ranges = rig.options.n_incoming);
	for (uint32_t i = 0; i < rig.options.n_incoming; i++)
		COMMAND(to, PORT_RANGE, port_range, Vsockd__PortRange, -1,
			body.first = rig.options.incoming[i].first;
			body.last = rig.options.incoming[i].last;
			body.is_denied = rig.options.incoming[i].is_denied);
	COMMAND(to, HANDOVER_POOL, handover_pool, Vsockd__HandoverPool, *from->pool,
		body.size = (uint64_t)from->device->pool.n_chunks * BUFFER_CHUNK_LEN);
	COMMAND(to, FEATURES, features, Vsockd__Features, -1,
		body.features = from->device->features);
	if (from->device->rings[RING_TX].is_suspended)
		COMMAND(to, SUSPEND, suspend, Vsockd__Suspend, -1, body.is_on = true);
}

static void tell_memory(const struct rig_worker *to, const struct rig_worker *from)
{
	const struct guest_table *table = &from->device->memory.table;

	for (size_t i = 0; i < table->n_regions; i++) {
		const struct guest_region *region = &table->regions[i];

		COMMAND(to, MEMORY_ADD, memory_add, Vsockd__MemoryAdd, rig.memory_fd,
			body.guest_address = region->guest_address;
			body.size = region->size; body.user_address = region->user_address;
			body.mmap_offset = region->guest_address - RIG_GUEST_BASE;
			body.alignment = 4096);
	}
	/* A test may have its file before the worker has heard of it. */
	if (from->device->log.bits)
		COMMAND(to, LOG_SET, log_set, Vsockd__LogSet, rig_log_fd,
			body.size = from->device->log.size;
			body.alignment = 4096);
}

static void tell_ring(const struct rig_worker *to, const struct rig_worker *from, uint32_t index)
{
	const struct ring *ring = &from->device->rings[index];
	const struct rig_ring *driver = &rig.rings[index];

	COMMAND(to, RING_CALL, ring_call, Vsockd__RingCall, driver->call, body.ring = index);
	COMMAND(to, RING_ERROR, ring_error, Vsockd__RingError, driver->error, body.ring = index);
	if (ring->is_enabled)
		COMMAND(to, RING_ENABLE, ring_enable, Vsockd__RingEnable, -1, body.ring = index;
			body.is_enabled = true);
	if (ring->is_started)
		COMMAND(to, RING_START, ring_start, Vsockd__RingStart,
			ring->in_band & RING_KICKED_IN_BAND ? -1 : driver->kick, body.ring = index;
			body.num = ring->num; body.desc = ring->addresses.desc;
			body.avail = ring->addresses.avail; body.used = ring->addresses.used;
			body.is_logged = ring->is_logged; body.log_address = ring->log_address;
			body.in_band = ring->in_band; body.from_used_index = true);
}

static void give_sockets(const struct rig_worker *to)
{
	Vsockd__HandoverSocket socket = VSOCKD__HANDOVER_SOCKET__INIT;
	Vsockd__Envelope given = VSOCKD__ENVELOPE__INIT;

	given.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER_SOCKET;
	given.handover_socket = &socket;
	for (uint32_t i = 0; i < RIG_ENDPOINTS; i++) {
		socket.endpoint = i;
		if (!rig_is_closed(i))
			post_to(to, &given, rig.copies[i]);
	}
	COMMAND(to, HANDOVER_SOCKETS, handover_sockets, Vsockd__HandoverSockets, -1, (void)0);
}

static void make(const struct rig_worker *to, const struct rig_worker *from)
{
	rig_start_device(to->device, to->front, to->epoll, to->pool);
	device_set_time(to->device, from->device->now_us);
	tell_assignment(to, from);
	tell_memory(to, from);
	for (uint32_t i = 0; i < RINGS; i++)
		tell_ring(to, from, i);
	give_sockets(to);
}

void rig_make_other(void)
{
	make(&rig_other, &rig_first);
}

static void check_claims(const Vsockd__HandoverConnections *told)
{
	assert_in_range(told->n, 1, HANDOVER_CLAIMS_MAX);
	for (uint32_t i = 0; i < told->n; i++) {
		const struct handover_claim claim = message_claim(told, i);

		if (claim.has_endpoint)
			assert_false(rig_is_closed(claim.endpoint));
	}
}

static void relay_one(const struct rig_worker *to, Vsockd__Envelope *envelope, rig_tamper *tamper)
{
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_HANDOVER_CONNECTIONS)
		check_claims(envelope->handover_connections);
	if (!tamper || tamper(envelope))
		post_to(to, envelope, -1);
	/* It may see what its sockets can do before it knows all about them, or after. */
	if (rig_random() % 2)
		rig_run_worker(to);
}

static void relay(const struct rig_worker *to, const struct rig_worker *from, rig_tamper *tamper,
		  uint32_t n_max)
{
	Vsockd__Handover body = VSOCKD__HANDOVER__INIT;
	Vsockd__Envelope command = VSOCKD__ENVELOPE__INIT, *envelope;
	int small = 1;

	assert_int_equal(
		setsockopt(from->device->channel, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
	command.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER;
	command.handover = &body;
	command.sequence = ++rig.sequence;
	post_to(from, &command, -1);
	for (uint32_t n = 0; n < n_max;) {
		rig_run_worker(from);
		while (n < n_max && (envelope = hear(from, MESSAGE_ASSIGNED | MESSAGE_FROZEN))) {
			n++;
			if (is_relayed(envelope)) {
				relay_one(to, envelope, tamper);
			} else if (envelope->body_case != VSOCKD__ENVELOPE__BODY_DONE) {
				rig_note_told(envelope);
			} else {
				assert_int_equal(envelope->done->sequence, rig.sequence);
				assert_int_equal(envelope->done->status, 0);
				return;
			}
		}
	}
}

void rig_relay(rig_tamper *tamper, uint32_t n_max)
{
	relay(&rig_other, &rig_first, tamper, n_max);
}

static int check(const struct rig_worker *worker)
{
	Vsockd__HandoverCheck body = VSOCKD__HANDOVER_CHECK__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	envelope.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER_CHECK;
	envelope.handover_check = &body;
	return rig_command_to(worker, &envelope, -1);
}

int rig_check_other(void)
{
	return check(&rig_other);
}

static void end(const struct rig_worker *worker)
{
	rig_end_device(worker->device, worker->front, worker->epoll, worker->pool);
}

void rig_end_other(void)
{
	end(&rig_other);
}

static void commit(const struct rig_worker *to, const struct rig_worker *from)
{
	int pool = *to->pool;

	*to->pool = *from->pool;
	*from->pool = pool;
	end(from);
	COMMAND(to, HANDOVER_COMMIT, handover_commit, Vsockd__HandoverCommit, -1, (void)0);
}

void rig_commit_other(void)
{
	commit(&rig_other, &rig_first);
	make(&rig_first, &rig_other);
	relay(&rig_first, &rig_other, NULL, UINT32_MAX);
	assert_int_equal(check(&rig_first), 0);
	commit(&rig_first, &rig_other);
	rig_run();
}

void rig_resume_first(void)
{
	COMMAND(&rig_first, HANDOVER_RESUME, handover_resume, Vsockd__HandoverResume, -1, (void)0);
	end(&rig_other);
	rig_run();
}

void rig_hand_over(void)
{
	rig_make_other();
	rig_relay(NULL, UINT32_MAX);
	assert_int_equal(rig_check_other(), 0);
	rig_commit_other();
}

bool rig_is_believed(const struct connection *connection)
{
	uint8_t bytes[HANDOVER_RECORD_MAX];
	size_t len = handover_put_record(&rig.device, connection, bytes);
	struct connection taken = {.fd = -1};

	return handover_get_record(&rig.device, &taken, bytes, len);
}

/* No front hands over what it is in the middle of telling or hearing. */
static bool can_hand_over(void)
{
	return rig.device.is_assigned && rig.device.state.phase == STATE_IDLE &&
	       !rig.device.has_done && !rig.device.waits_to_write &&
	       rig.device.memory.staged.n_regions == 0;
}

static int every, n_runs;

static void hand_over_if_possible(void)
{
	if (++n_runs % every == 0 && can_hand_over())
		rig_hand_over();
}

/* RIG_HANDS_OVER=n: after each n-th time that the worker has done what it could. */
static __attribute__((constructor)) void choose(void)
{
	const char *value = getenv("RIG_HANDS_OVER");

	every = value ? atoi(value) : 0;
	if (every > 0)
		rig_after_run = hand_over_if_possible;
}
