/* SPDX-License-Identifier: Apache-2.0 */

/* Workers, front and spawner that die or hang, and guests that break their device. */

#include <errno.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"
#include "tests/integration/transfer.h"

#define KIB   1024u
#define MIB   (1024u * 1024)
#define LIMIT SETUP_LIMIT

/* How long a guest or a host program may be left without an answer. */
#define AT_ONCE 1000

#define DEATHS_MAX 8
/* The last four deaths but one: 200 + 400 + 800 + 1600 ms. */
#define BACKOFF_MS 3000

/* ---- what the tests are made of ---- */

static void kill_worker(struct setup *setup, size_t vm)
{
	assert_int_equal(daemon_kill(setup_worker(setup, vm), LIMIT), 0);
}

static void check_session(struct guest *guest)
{
	uint64_t features;

	assert_int_equal(vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features), 0);
	assert_true(features == guest->vhost.offered_features);
}

static int wait_err(const struct ring *ring)
{
	return socket_wait(ring->err, POLLIN, deadline_in(LIMIT));
}

static bool is_sanitized(struct setup *setup)
{
	return daemon_log_has(&setup->daemon, "built with sanitizers");
}

/* A host program that asks for a port of the guest. */
static void ask_guest(struct setup *setup, size_t vm, uint32_t port, struct host_stream *ret_stream)
{
	int fd = host_connect(setup->uds_paths[vm], port, LIMIT);

	assert_true(fd >= 0);
	host_stream_init(ret_stream, fd);
	guest_watch(&setup->guests[vm], &ret_stream->watch);
}

static bool has_answer(void *context)
{
	uint32_t port;

	return host_stream_take_ok(context, &port) == 1;
}

static bool has_ended(void *context)
{
	const struct host_stream *stream = context;

	return stream->is_ended || stream->error;
}

static bool is_closed(void *context)
{
	return ((struct guest_connection *)context)->state == GUEST_CLOSED;
}

/* ---- a worker dies ---- */

static void test_a_killed_worker_costs_its_connections_and_nothing_else(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct transfer lost, other;
	struct guest_connection *connection;
	struct host_stream stream;
	pid_t workers[2];

	setup_guest(setup, 1, (struct guest_options){0});
	workers[0] = setup_worker(setup, 0);
	workers[1] = setup_worker(setup, 1);
	transfer_start(&other, setup, 1, 2000, 2048 * KIB);
	transfer_run_to(&other, 500 * KIB);
	transfer_start(&lost, setup, 0, 1000, 2048 * KIB);
	transfer_run_to(&lost, 500 * KIB);
	assert_int_equal(guest_listen(guest, 77), 0);
	assert_int_equal(daemon_kill(workers[0], LIMIT), 0);
	transfer_expect_loss(&lost, AT_ONCE);
	check_session(guest);

	/* New ones, both ways. */
	ask_guest(setup, 0, 77, &stream);
	setup_wait_within(setup, guest, has_answer, &stream, AT_ONCE);
	connection = guest_accept(guest, 77);
	assert_non_null(connection);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
	transfer_all(setup, 0, 1001, 300 * KIB);

	transfer_finish(&other);
	assert_int_equal(setup_worker(setup, 1), workers[1]);
	assert_int_not_equal(setup_worker(setup, 0), workers[0]);
}

static void test_every_vmm_survives_a_killed_worker(void **state)
{
	struct setup *setup = *state;

	for (int style = GUEST_LIKE_QEMU; style <= GUEST_LIKE_CLOUD_HYPERVISOR; style++) {
		struct guest *guest = setup_guest(
			setup, 0, (struct guest_options){.style = (enum guest_style)style});
		struct transfer transfer;

		for (int i = 0; i < 2; i++) {
			transfer_start(&transfer, setup, 0, 1000, 2048 * KIB);
			transfer_run_to(&transfer, 300 * KIB);
			kill_worker(setup, 0);
			transfer_expect_loss(&transfer, AT_ONCE);
		}
		assert_int_equal(guest_stop(guest), 0);
		kill_worker(setup, 0);
		assert_int_equal(guest_resume(guest), 0);
		transfer_all(setup, 0, 1001, 300 * KIB);
		setup_end_guest(setup, 0);
	}
}

/* Small rings and large ones, chains of any length: killed wherever it may be in them. */
static void test_a_successor_finds_each_ring_where_it_was_left(void **state)
{
	static const struct guest_layout layouts[] = {
		{.n_cuts = 0},
		{.cuts = {20, 44}, .n_cuts = 2},
		{.cuts = {44}, .n_cuts = 1, .piece_len = 700},
	};
	struct setup *setup = *state;

	for (size_t i = 0; i < 12; i++) {
		struct guest *guest = setup_guest(setup, 0,
						  (struct guest_options){
							  .style = GUEST_LIKE_CROSVM,
							  .queue_size = i % 2 ? 128 : 16,
							  .rx_layout = layouts[i % 3],
						  });
		struct transfer transfers[2];

		for (size_t k = 0; k < 2; k++) {
			for (uint32_t n = 0; n < 2; n++) {
				transfer_start(&transfers[n], setup, 0, 1000 + n, 2048 * KIB);
				transfers[n].connection->layout = layouts[(i + k + n) % 3];
				transfers[n].connection->packet_size = 4096;
			}
			transfer_run_to(&transfers[0], (10 + 97 * (i + k) % 300) * KIB);
			transfer_step(&transfers[1], 0);
			kill_worker(setup, 0);
			for (uint32_t n = 0; n < 2; n++)
				transfer_expect_loss(&transfers[n], AT_ONCE);
			transfer_all(setup, 0, 1001, 100 * KIB);
		}
		assert_int_equal(guest_stop(guest), 0);
		assert_int_equal(guest_resume(guest), 0);
		transfer_all(setup, 0, 1001, 100 * KIB);
		setup_end_guest(setup, 0);
	}
}

static void test_a_killed_spare_is_replaced_and_nobody_notices(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;
	pid_t pids[DAEMON_PIDS_MAX];
	pid_t worker;

	setup_guest(setup, 0, (struct guest_options){0});
	worker = setup_worker(setup, 0);
	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	transfer_run_to(&transfer, 300 * KIB);
	setup_settle(setup); /* the spare is started behind the guest's back */
	assert_int_equal(daemon_find(&setup->daemon, "vsockd-worker", pids), 2);
	assert_int_equal(daemon_kill(pids[0] == worker ? pids[1] : pids[0], LIMIT), 0);
	transfer_finish(&transfer);
	assert_int_equal(setup_worker(setup, 0), worker);
	/* And the next one is of use. */
	kill_worker(setup, 0);
	transfer_all(setup, 0, 1001, 100 * KIB);
}

static void ask_ring_base(struct vhost *vhost, uint32_t ring)
{
	const uint32_t message[] = {VHOST_GET_VRING_BASE, VHOST_FLAG_VERSION, 8, ring, 0};

	assert_int_equal(vhost_send_raw(vhost, message, sizeof(message), NULL, 0), 0);
}

static void test_a_stop_that_its_worker_does_not_live_to_answer_is_answered(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct transfer transfer;

	transfer_start(&transfer, setup, 0, 1000, 2048 * KIB);
	transfer_run_to(&transfer, 500 * KIB);
	for (uint32_t i = 0; i < 2; i++) {
		struct vhost_ring_state base;
		pid_t worker = setup_worker(setup, 0);

		assert_int_equal(kill(worker, SIGSTOP), 0);
		ask_ring_base(&guest->vhost, i);
		assert_int_equal(daemon_kill(worker, LIMIT), 0);
		assert_int_equal(vhost_receive(&guest->vhost, VHOST_GET_VRING_BASE, &base,
					       sizeof(base), NULL),
				 sizeof(base));
		assert_int_equal(base.index, i);
		assert_null(ring_judge_base(&guest->rings[i], base.num));
	}
	assert_int_equal(guest_stop(guest), 0);
	assert_int_equal(guest_resume(guest), 0);
	transfer_expect_loss(&transfer, AT_ONCE);
	transfer_all(setup, 0, 1001, 300 * KIB);
}

/* A host program whose backlog is full: what asks for it waits. */
static int listen_without_room(const char *path, int *ret_waiting)
{
	int listener = socket_listen(path, SOCK_STREAM);

	assert_true(listener >= 0);
	assert_int_equal(listen(listener, 0), 0);
	*ret_waiting = socket_connect(path, SOCK_STREAM, LIMIT);
	assert_true(*ret_waiting >= 0);
	return listener;
}

static void test_a_guest_whose_connect_is_pending_is_answered(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	int listener, waiting;
	char path[128];

	snprintf(path, sizeof(path), "%s_1000", setup->uds_paths[0]);
	listener = listen_without_room(path, &waiting);
	connection = guest_connect(guest, PACKET_HOST_CID, 1000);
	setup_settle(setup); /* nobody but this worker is to have seen the request */
	assert_true(guest_poll(guest, 0) >= 0);
	assert_int_equal(connection->state, GUEST_CONNECTING);
	kill_worker(setup, 0);
	setup_wait_within(setup, guest, is_closed, connection, AT_ONCE);
	assert_int_equal(connection->error, ECONNRESET);
	close(waiting);
	close(listener);
	unlink(path);
	transfer_all(setup, 0, 1000, 100 * KIB);
}

static void test_host_programs_in_their_handshake_are_told(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream;

	setup_worker(setup, 0);
	for (int i = 0; i < 2; i++) {
		int fd = socket_connect(setup->uds_paths[0], SOCK_STREAM, LIMIT);

		/* Nothing said yet; half of a line. */
		assert_true(fd >= 0);
		assert_int_equal(host_write(fd, "CONN", i ? 4 : 0, LIMIT), 0);
		host_stream_init(&stream, fd);
		guest_watch(guest, &stream.watch);
		setup_settle(setup); /* it is this worker's, and what was said was read */
		kill_worker(setup, 0);
		setup_wait_within(setup, guest, has_ended, &stream, AT_ONCE);
		assert_int_equal(stream.n_received, 0);
		setup_end_stream(setup, 0, &stream);
	}
}

static bool keep_request(void *context, const struct packet *packet, const struct iovec *payload,
			 size_t n_payload)
{
	(void)payload;
	(void)n_payload;
	if (packet->op != PACKET_REQUEST)
		return false;
	*(struct packet *)context = *packet;
	return true;
}

static bool has_request(void *context)
{
	return ((struct packet *)context)->op == PACKET_REQUEST;
}

static void test_a_host_program_that_the_guest_has_not_yet_answered_is_told(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream;
	struct packet request = {0}, answer;

	guest->on_packet = keep_request;
	guest->on_packet_context = &request;
	ask_guest(setup, 0, 77, &stream);
	assert_int_equal(guest_wait_until(guest, has_request, &request, LIMIT), 0);
	kill_worker(setup, 0);
	setup_wait_within(setup, guest, has_ended, &stream, AT_ONCE);
	assert_int_equal(stream.n_received, 0);
	setup_end_stream(setup, 0, &stream);
	/* A late answer does no harm. */
	answer = (struct packet){
		.src_cid = request.dst_cid,
		.dst_cid = request.src_cid,
		.src_port = request.dst_port,
		.dst_port = request.src_port,
		.type = PACKET_STREAM,
		.op = PACKET_RESPONSE,
		.buf_alloc = 65536,
	};
	assert_int_equal(guest_send_packet(guest, &answer, NULL, 0, NULL), 0);
	transfer_all(setup, 0, 1000, 100 * KIB);
}

static void test_a_worker_that_dies_again_and_again_fails_its_device_alone(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct transfer other;
	int64_t after_backoff = deadline_in(BACKOFF_MS);

	setup_guest(setup, 1, (struct guest_options){0});
	setup_worker(setup, 0);
	setup_worker(setup, 1);
	transfer_start(&other, setup, 1, 2000, 2048 * KIB);
	for (size_t i = 0; i < DEATHS_MAX; i++) {
		assert_false(daemon_log_has(&setup->daemon, "device failed"));
		kill_worker(setup, 0);
		transfer_run_to(&other, i * 100 * KIB);
	}
	assert_int_equal(daemon_wait_log(&setup->daemon, "device failed", LIMIT), 0);
	assert_int_equal(deadline_left(after_backoff), 0);
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(wait_err(&guest->rings[i]), 0);
	check_session(guest);
	assert_int_equal(guest_stop(guest), 0);
	assert_int_equal(guest_resume(guest), 0);
	check_session(guest);
	transfer_finish(&other);
	setup_end_guest(setup, 0);
	setup_guest(setup, 0, (struct guest_options){0});
	transfer_all(setup, 0, 1000, 300 * KIB);
}

/* ---- a guest or its VMM breaks the device ---- */

static void test_truncated_memory_kills_the_workers_of_that_vm_alone(void **state)
{
	static const struct memory_layout unsealed[] = {
		{.guest_address = MIB, .size = 64 * MIB, .is_unsealed = true}};
	struct setup *setup = *state;
	struct guest *guest =
		setup_guest(setup, 0, (struct guest_options){.regions = unsealed, .n_regions = 1});
	struct transfer other;

	/* SIGBUS is what is wanted here. */
	setup->expects_report = is_sanitized(setup);
	setup_guest(setup, 1, (struct guest_options){0});
	transfer_start(&other, setup, 1, 2000, 2048 * KIB);
	transfer_run_to(&other, 500 * KIB);
	/* From here on this process, too, must not touch that memory. */
	assert_int_equal(ftruncate(guest->memory.fds[0], 0), 0);
	ring_kick(&guest->rings[GUEST_TX]);
	assert_int_equal(daemon_wait_log(&setup->daemon, "worker lost", LIMIT), 0);
	transfer_run_to(&other, 1000 * KIB);
	assert_int_equal(daemon_wait_log(&setup->daemon, "device failed", LIMIT), 0);
	if (!is_sanitized(setup))
		assert_true(daemon_log_has(&setup->daemon, "guest memory was truncated"));
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(wait_err(&guest->rings[i]), 0);
	check_session(guest);
	transfer_finish(&other);
	setup_end_guest(setup, 0);
	setup_guest(setup, 0, (struct guest_options){0});
	transfer_all(setup, 0, 1000, 300 * KIB);
}

static void jump(struct ring *ring)
{
	ring_set_avail_idx(ring, (uint16_t)(ring->avail_idx + ring->size + 1));
	ring_kick(ring);
}

static void offer_bad_index(struct ring *ring)
{
	ring_offer_raw(ring, ring->size);
	ring_submit(ring);
	ring_kick(ring);
}

static void offer_descriptor(struct ring *ring, struct ring_descriptor descriptor)
{
	ring_offer_descriptor(ring, descriptor.address, descriptor.len, descriptor.flags,
			      descriptor.next);
	ring_kick(ring);
}

static void offer_bad_next(struct ring *ring)
{
	offer_descriptor(ring, (struct ring_descriptor){.address = ring->used_address,
							.len = 16,
							.flags = RING_DESCRIPTOR_NEXT,
							.next = ring->size});
}

static void offer_loop(struct ring *ring)
{
	/* A packed ring has no loops but the one that it is. */
	for (uint32_t i = 1; ring->is_packed && i < ring->size; i++)
		ring_offer_descriptor(ring, ring->used_address, 16, RING_DESCRIPTOR_NEXT, 0);
	offer_descriptor(ring, (struct ring_descriptor){.address = ring->used_address,
							.len = 16,
							.flags = RING_DESCRIPTOR_NEXT,
							.next = ring->free_head});
}

static void offer_address_outside(struct ring *ring)
{
	offer_descriptor(ring, (struct ring_descriptor){.address = 4096, .len = 44});
}

static void offer_end_outside(struct ring *ring)
{
	const struct vhost_region *region = &ring->memory->regions[0];

	offer_descriptor(
		ring, (struct ring_descriptor){.address = region->guest_address + region->size - 43,
					       .len = 44});
}

static void offer_table_outside(struct ring *ring)
{
	offer_descriptor(ring, (struct ring_descriptor){.address = 4096,
							.len = 16,
							.flags = RING_DESCRIPTOR_INDIRECT});
}

static void offer_uneven_table(struct ring *ring)
{
	offer_descriptor(ring, (struct ring_descriptor){.address = ring->used_address,
							.len = 17,
							.flags = RING_DESCRIPTOR_INDIRECT});
}

static const struct {
	void (*break_ring)(struct ring *ring);
	const char *text;
	bool is_of_split; /* a packed ring has no such thing */
} breaks[] = {
	{jump, "avail index jumped", true},
	{offer_bad_index, "descriptor index outside the ring", true},
	{offer_bad_next, "descriptor index outside the ring", true},
	{offer_loop, "chain longer than the ring", false},
	{offer_address_outside, "address outside guest memory", false},
	{offer_end_outside, "address outside guest memory", false},
	{offer_table_outside, "malformed indirect table", false},
	{offer_uneven_table, "malformed indirect table", false},
};

#define N_BREAKS (sizeof(breaks) / sizeof(breaks[0]))

/* How many lines it made: none where the ring cannot be broken like that. */
static size_t break_and_repair(struct setup *setup, size_t i, size_t n_broken,
			       struct transfer *other)
{
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct ring *ring = &guest->rings[GUEST_TX];
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, 1000, &stream);

	if (ring->is_packed && breaks[i].is_of_split) {
		assert_int_equal(guest_finish(connection, LIMIT), 0);
		setup_end_stream(setup, 0, &stream);
		setup_end_guest(setup, 0);
		return 0;
	}
	while (ring->n_in_flight > 0)
		assert_true(guest_poll(guest, LIMIT) > 0);
	breaks[i].break_ring(ring);
	assert_int_equal(wait_err(ring), 0);
	assert_int_equal(daemon_wait_log(&setup->daemon, breaks[i].text, LIMIT), 0);
	ring_kick(ring);
	check_session(guest);
	transfer_run_to(other, (i + 1) * 100 * KIB);
	assert_int_equal(guest_poll_for(guest, 20), 0);
	assert_int_equal(daemon_count_log(&setup->daemon, "is broken"), n_broken + 1);
	/* As the driver would have it, had it not misbehaved; all that it offered was used. */
	ring_withdraw(ring, ring_used_idx(ring));
	assert_int_equal(guest_stop(guest), 0);
	assert_int_equal(guest_resume(guest), 0);
	assert_int_equal(guest_send(connection, "12345", 5), 5);
	while (stream.n_received < 5)
		assert_true(guest_poll(guest, LIMIT) > 0);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
	transfer_all(setup, 0, 1001, 300 * KIB);
	setup_end_guest(setup, 0);
	return 1;
}

static void test_a_broken_ring_is_reported_once_and_works_when_repaired(void **state)
{
	struct setup *setup = *state;
	struct transfer other;
	size_t n_broken = 0;

	setup_guest(setup, 1, (struct guest_options){0});
	transfer_start(&other, setup, 1, 2000, 2048 * KIB);
	for (size_t i = 0; i < N_BREAKS; i++)
		n_broken += break_and_repair(setup, i, n_broken, &other);
	transfer_finish(&other);
	assert_false(daemon_log_has(&setup->daemon, "worker lost"));
}

static void test_a_broken_rx_ring_is_reported_and_works_when_repaired(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){.n_rx_buffers = 1});
	struct ring *ring = &guest->rings[GUEST_RX];
	uint16_t avail_idx = ring->avail_idx;
	struct host_stream stream;

	/* Beyond the one buffer, which it may still fill. */
	if (ring->is_packed)
		ring_offer_descriptor(ring, 4096, 44, RING_DESCRIPTOR_WRITE, 0);
	else
		ring_set_avail_idx(ring, (uint16_t)(avail_idx + 2 * ring->size));
	ring_kick(ring);
	ask_guest(setup, 0, 77, &stream);
	assert_int_equal(wait_err(ring), 0);
	assert_int_equal(daemon_wait_log(&setup->daemon,
					 ring->is_packed
						 ? "ring 0 is broken: address outside guest memory"
						 : "ring 0 is broken: avail index jumped",
					 LIMIT),
			 0);
	check_session(guest);
	ring_withdraw(ring, avail_idx);
	assert_int_equal(guest_stop(guest), 0);
	assert_int_equal(guest_resume(guest), 0);
	while (!has_ended(&stream))
		assert_true(guest_poll(guest, LIMIT) > 0);
	setup_end_stream(setup, 0, &stream);
	transfer_all(setup, 0, 1001, 100 * KIB);
}

static void test_a_hanging_worker_does_not_hang_another_vm(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct transfer hanging;
	uint64_t features;
	pid_t worker;

	setup_guest(setup, 1, (struct guest_options){0});
	worker = setup_worker(setup, 0);
	transfer_start(&hanging, setup, 0, 1000, 2048 * KIB);
	transfer_run_to(&hanging, 500 * KIB);
	assert_int_equal(kill(worker, SIGSTOP), 0);
	/* One question to the front alone, one that waits for the worker. */
	check_session(guest);
	ask_ring_base(&guest->vhost, 0);
	transfer_all(setup, 1, 2000, 2048 * KIB);
	setup_end_guest(setup, 1);
	setup_guest(setup, 1, (struct guest_options){0});
	transfer_all(setup, 1, 2001, 300 * KIB);
	assert_int_equal(kill(worker, SIGCONT), 0);
	assert_int_equal(vhost_receive(&guest->vhost, VHOST_GET_VRING_BASE, &features, 8, NULL), 8);
	assert_int_equal(guest_stop(guest), 0);
	assert_int_equal(guest_resume(guest), 0);
	transfer_finish(&hanging);
}

static void test_a_hanging_worker_does_not_hang_the_next_session(void **state)
{
	struct setup *setup = *state;
	pid_t worker;

	setup_guest(setup, 0, (struct guest_options){0});
	worker = setup_worker(setup, 0);
	assert_int_equal(kill(worker, SIGSTOP), 0);
	setup_end_guest(setup, 0);
	setup_guest(setup, 0, (struct guest_options){0});
	transfer_all(setup, 0, 1000, 300 * KIB);
	assert_int_equal(kill(worker, SIGCONT), 0);
}

/* ---- the whole ends ---- */

static void wait_gone(struct setup *setup, const pid_t *pids, size_t n_pids)
{
	int64_t deadline = deadline_in(LIMIT);

	assert_int_equal(socket_wait(setup->daemon.pidfd, POLLIN, deadline), 0);
	for (size_t i = 0; i < n_pids; i++) {
		int pidfd = (int)syscall(SYS_pidfd_open, pids[i], 0);

		if (pidfd < 0)
			continue; /* gone and reaped */
		assert_int_equal(socket_wait(pidfd, POLLIN, deadline), 0);
		close(pidfd);
	}
}

static void start_traffic(struct setup *setup, struct transfer *ret_transfer)
{
	setup_guest(setup, 0, (struct guest_options){0});
	setup_guest(setup, 1, (struct guest_options){0});
	setup_worker(setup, 0);
	setup_worker(setup, 1);
	transfer_start(ret_transfer, setup, 0, 1000, 2048 * KIB);
	transfer_run_to(ret_transfer, 500 * KIB);
}

/* The guest sees the end, the host program too. */
static void expect_end(struct transfer *transfer)
{
	struct guest *guest = transfer->connection->guest;
	struct host_stream *stream = &transfer->stream;
	int64_t deadline = deadline_in(LIMIT);

	while (!has_ended(stream)) {
		assert_true(deadline_left(deadline) > 0);
		stream->watch.ready(&stream->watch, POLLIN | POLLOUT);
	}
	assert_int_equal(vhost_wait_closed(&guest->vhost), 0);
	guest_unwatch(guest, &stream->watch);
	transfer_abandon(transfer);
}

static void test_the_end_of_the_front_ends_everything(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n;

	start_traffic(setup, &transfer);
	n = daemon_pids(&setup->daemon, pids);
	assert_true(n >= 5); /* itself, the front, two workers, a spare */
	assert_int_equal(daemon_kill(pids[1], LIMIT), 0);
	setup->exit_code = 70; /* EX_SOFTWARE */
	expect_end(&transfer);
	wait_gone(setup, pids + 1, n - 1);
}

static void test_the_end_of_the_spawner_ends_everything(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n;

	start_traffic(setup, &transfer);
	n = daemon_pids(&setup->daemon, pids);
	assert_int_equal(daemon_kill(pids[0], LIMIT), 0);
	setup->exit_code = 128 + SIGKILL;
	expect_end(&transfer);
	wait_gone(setup, pids + 1, n - 1);
	/* Nobody was left who could have done that. */
	for (size_t i = 0; i < setup->n_vms; i++) {
		assert_int_equal(unlink(setup->sockets[i]), 0);
		assert_int_equal(unlink(setup->uds_paths[i]), 0);
	}
}

static void end_by(struct setup *setup, int signal)
{
	struct transfer transfer;
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n;

	start_traffic(setup, &transfer);
	n = daemon_pids(&setup->daemon, pids);
	assert_int_equal(kill(setup->daemon.pid, signal), 0);
	expect_end(&transfer);
	wait_gone(setup, pids + 1, n - 1);
}

static void test_sigterm_during_traffic_is_an_orderly_end(void **state)
{
	end_by(*state, SIGTERM);
}

static void test_sigint_during_traffic_is_an_orderly_end(void **state)
{
	end_by(*state, SIGINT);
}

/* ---- their turns on the processors ---- */

#define SHORTEST_TURN_NS 100000

/* 0: the kernel knows of none. */
static uint64_t turn_of(pid_t pid)
{
	struct sched_attr turns = {0};

	if (syscall(SYS_sched_getattr, pid, &turns, SCHED_ATTR_SIZE_VER0, 0) < 0)
		return 0;
	return turns.sched_runtime;
}

/* Niceness is the administrator's. */
static int start_nice(void **state)
{
	return nice(1) < 0 ? -1 : setup_start_one(state);
}

static void test_all_processes_have_short_turns_and_their_niceness(void **state)
{
	struct setup *setup = *state;
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n;

	setup_guest(setup, 0, (struct guest_options){0});
	setup_worker(setup, 0);
	n = daemon_pids(&setup->daemon, pids);
	assert_true(n >= 3);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(getpriority(PRIO_PROCESS, (id_t)pids[i]),
				 getpriority(PRIO_PROCESS, 0));
	if (turn_of(0) == 0) {
		print_message("skipped: this kernel gives nobody short turns (Linux 6.12 does)\n");
		skip();
	}
	for (size_t i = 0; i < n; i++)
		assert_int_equal(turn_of(pids[i]), SHORTEST_TURN_NS);
}

#define ONE_VM(test)  cmocka_unit_test_setup_teardown(test, setup_start_one, setup_end)
#define TWO_VMS(test) cmocka_unit_test_setup_teardown(test, setup_start_two, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TWO_VMS(test_a_killed_worker_costs_its_connections_and_nothing_else),
		ONE_VM(test_every_vmm_survives_a_killed_worker),
		ONE_VM(test_a_successor_finds_each_ring_where_it_was_left),
		ONE_VM(test_a_killed_spare_is_replaced_and_nobody_notices),
		ONE_VM(test_a_stop_that_its_worker_does_not_live_to_answer_is_answered),
		ONE_VM(test_a_guest_whose_connect_is_pending_is_answered),
		ONE_VM(test_host_programs_in_their_handshake_are_told),
		ONE_VM(test_a_host_program_that_the_guest_has_not_yet_answered_is_told),
		TWO_VMS(test_a_worker_that_dies_again_and_again_fails_its_device_alone),
		TWO_VMS(test_truncated_memory_kills_the_workers_of_that_vm_alone),
		TWO_VMS(test_a_broken_ring_is_reported_once_and_works_when_repaired),
		ONE_VM(test_a_broken_rx_ring_is_reported_and_works_when_repaired),
		TWO_VMS(test_a_hanging_worker_does_not_hang_another_vm),
		ONE_VM(test_a_hanging_worker_does_not_hang_the_next_session),
		TWO_VMS(test_the_end_of_the_front_ends_everything),
		TWO_VMS(test_the_end_of_the_spawner_ends_everything),
		TWO_VMS(test_sigterm_during_traffic_is_an_orderly_end),
		TWO_VMS(test_sigint_during_traffic_is_an_orderly_end),
		cmocka_unit_test_setup_teardown(
			test_all_processes_have_short_turns_and_their_niceness, start_nice,
			setup_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
