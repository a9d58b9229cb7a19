/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Streams through the built programs: whatever the driver's buffers look like,
 * whoever is slow and whoever ends first, all bytes arrive in order, nobody
 * gets more than it has room for, and waiting costs nothing.
 */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"

#define KIB   1024u
#define MIB   (1024u * KIB)
#define LIMIT SETUP_LIMIT
#define BULK  (16 * MIB)
#define PORT  1234u

/* Long enough for whatever is on its way, short enough to be had often. */
#define QUIET 50

/* Two streams without a short period; each test moves parts of them. */
static uint8_t up[BULK], down[BULK], received[BULK];

/* Both directions of one connection: up to the host program, down to the guest. */
struct flow {
	struct guest_connection *connection;
	struct host_stream host;
	const uint8_t *up, *down;
	size_t up_len, down_len;
	size_t n_up, n_down; /* sent by the guest, received by it */
	bool is_wrong;
};

static int fill_streams(void **state)
{
	(void)state;
	pattern_fill(up, sizeof(up), 1, 0);
	pattern_fill(down, sizeof(down), 2, 0);
	return 0;
}

static int end(void **state)
{
	struct setup *setup = *state;

	assert_false(daemon_log_has(&setup->daemon, "worker lost"));
	return setup_end(state);
}

static void see(void *context, const uint8_t *bytes, size_t len)
{
	struct flow *flow = context;

	if (len > flow->down_len - flow->n_down ||
	    memcmp(bytes, flow->down + flow->n_down, len) != 0)
		flow->is_wrong = true;
	flow->n_down += len;
}

static void flow_begin(struct flow *flow, size_t up_len, size_t down_len)
{
	flow->up = up;
	flow->down = down;
	flow->up_len = up_len;
	flow->down_len = down_len;
	flow->connection->sink = see;
	flow->connection->sink_context = flow;
	host_stream_send(&flow->host, down, down_len, false);
}

/* Send what can be sent. Has everything arrived, or something gone wrong? */
static bool is_moved(void *context)
{
	struct flow *flow = context;

	if (flow->n_up < flow->up_len) {
		ssize_t n = guest_send(flow->connection, flow->up + flow->n_up,
				       flow->up_len - flow->n_up);

		if (n > 0)
			flow->n_up += (size_t)n;
		else if (n != -EAGAIN)
			flow->is_wrong = true;
	}
	return flow->is_wrong || flow->host.error ||
	       (flow->n_down == flow->down_len && flow->host.n_received == flow->up_len);
}

static void flow_check(const struct flow *flow)
{
	assert_false(flow->is_wrong);
	assert_int_equal(flow->host.error, 0);
	assert_int_equal(flow->n_down, flow->down_len);
	assert_int_equal(flow->host.n_received, flow->up_len);
	assert_memory_equal(flow->host.received, flow->up, flow->up_len);
}

/* A new connection moves so many bytes both ways at once, and ends. */
static void move(struct setup *setup, size_t up_len, size_t down_len, uint32_t packet_size)
{
	struct guest *guest = &setup->guests[0];
	struct flow flow = {0};

	flow.connection = setup_connect(setup, 0, PORT, &flow.host);
	flow.connection->packet_size = packet_size;
	flow_begin(&flow, up_len, down_len);
	assert_int_equal(guest_wait_until(guest, is_moved, &flow, LIMIT), 0);
	flow_check(&flow);
	assert_int_equal(guest_finish(flow.connection, LIMIT), 0);
	setup_end_stream(setup, 0, &flow.host);
}

static bool has_all_down(void *context)
{
	const struct flow *flow = context;

	return flow->is_wrong || flow->n_down == flow->down_len;
}

static bool is_ended(void *context)
{
	const struct host_stream *host = context;

	return host->is_ended || host->error;
}

static bool peer_said_send(void *context)
{
	const struct guest_connection *connection = context;

	return connection->peer_shutdown & PACKET_SHUTDOWN_SEND;
}

/* Its first messages meet a worker that is only being told what to do. */
static void test_a_front_end_that_comes_again_and_again_is_answered_each_time(void **state)
{
	struct setup *setup = *state;

	for (int i = 0; i < 100; i++) {
		setup_guest(setup, 0, (struct guest_options){0});
		setup_end_guest(setup, 0);
	}
	setup_guest(setup, 0, (struct guest_options){0});
	move(setup, MIB, MIB, PACKET_PAYLOAD_MAX);
}

/* ---- what the driver's buffers look like ---- */

static void test_any_layout_of_descriptors_carries_both_directions(void **state)
{
	static const struct guest_layout layouts[] = {
		{.n_cuts = 0},
		{.cuts = {1, 20, 43, 45}, .n_cuts = 4},
		{.cuts = {44}, .n_cuts = 1, .piece_len = 4096}, /* 17 for 64 KiB */
		{.cuts = {40}, .n_cuts = 1, .piece_len = 220},	/* about 300 */
	};
	struct setup *setup = *state;

	for (size_t i = 0; i < 16; i++) {
		struct guest_options options = {
			.features = BIT64(VIRTIO_VERSION_1) |
				    (i & 1 ? BIT64(VIRTIO_EVENT_IDX) : 0) |
				    (i & 2 ? BIT64(VIRTIO_INDIRECT) : 0),
			.queue_size = 512,
			.rx_buffer_size = i < 8 ? 4096 : 65580,
			.tx_layout = layouts[i / 4],
			.rx_layout = layouts[i / 4],
		};

		options.tx_layout.is_indirect = options.rx_layout.is_indirect = i & 2;
		setup_guest(setup, 0, options);
		move(setup, 4 * MIB, 4 * MIB, PACKET_PAYLOAD_MAX);
		setup_end_guest(setup, 0);
	}
}

static void test_packets_of_any_size_arrive(void **state)
{
	static const uint32_t sizes[] = {1,    2,    43,    44,	   45,	  1000,
					 4051, 4096, 16384, 32769, 65535, 65536};
	struct setup *setup = *state;

	setup_guest(setup, 0, (struct guest_options){0});
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		move(setup, sizes[i] < 300 ? 3000 * sizes[i] : MIB, 0, sizes[i]);
}

static bool note_largest(void *context, const struct packet *packet, const struct iovec *payload,
			 size_t n_payload)
{
	uint32_t *largest = context;

	(void)payload;
	(void)n_payload;
	if (packet->len > *largest)
		*largest = packet->len;
	return false;
}

static void test_rx_buffers_of_any_size_are_filled(void **state)
{
	static const struct {
		uint32_t size, down_len;
	} cases[] = {
		{45, 2000}, {64, 200000}, {4096, 4 * MIB}, {65580, 4 * MIB}, {131072, 4 * MIB}};
	struct setup *setup = *state;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct guest *guest = setup_guest(
			setup, 0, (struct guest_options){.rx_buffer_size = cases[i].size});
		uint32_t largest = 0, room = cases[i].size - PACKET_HEADER_LEN;

		guest->on_packet = note_largest;
		guest->on_packet_context = &largest;
		move(setup, 1000, cases[i].down_len, PACKET_PAYLOAD_MAX);
		assert_int_equal(largest, room < PACKET_PAYLOAD_MAX ? room : PACKET_PAYLOAD_MAX);
		setup_end_guest(setup, 0);
	}
}

static void test_a_ring_of_any_size_carries_both_directions(void **state)
{
	static const uint16_t sizes[] = {1, 2, 4, 1024, 32768};
	struct setup *setup = *state;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		setup_guest(setup, 0,
			    (struct guest_options){.queue_size = sizes[i], .n_rx_buffers = 1024});
		move(setup, MIB, MIB, PACKET_PAYLOAD_MAX);
		setup_end_guest(setup, 0);
	}
}

static void test_buffers_may_lie_across_borders_of_memory_regions(void **state)
{
	static const struct memory_layout regions[] = {
		{.guest_address = 0, .size = MIB, .offset = 4096},
		{.guest_address = MIB, .size = 16 * MIB, .is_unsealed = true},
		{.guest_address = 17 * MIB, .size = 32 * MIB},
		{.guest_address = UINT64_C(1) << 32, .size = MIB},
	};
	struct setup *setup = *state;

	for (int i = 0; i < 2; i++) {
		struct guest_options options = {
			.regions = regions,
			.n_regions = 4,
			.is_straddling = true,
			.n_rx_buffers = 4,
		};

		options.tx_layout.is_indirect = options.rx_layout.is_indirect = i;
		setup_guest(setup, 0, options);
		move(setup, MIB, MIB, PACKET_PAYLOAD_MAX);
		setup_end_guest(setup, 0);
	}
}

/* ---- much at once ---- */

static void test_bulk_moves_both_ways_at_once(void **state)
{
	struct setup *setup = *state;

	setup_guest(setup, 0, (struct guest_options){0});
	move(setup, BULK, BULK, PACKET_PAYLOAD_MAX);
}

#define MANY 64

static bool are_moved(void *context)
{
	struct flow *flows = context;
	bool result = true;

	for (size_t i = 0; i < MANY; i++)
		result &= is_moved(&flows[i]);
	return result;
}

/* From the host to the guest: the guest's end, and the host program's watched by the guest. */
static struct guest_connection *call_guest(struct setup *setup, uint32_t port,
					   struct host_stream *ret_stream)
{
	struct guest *guest = &setup->guests[0];
	int64_t deadline = deadline_in(LIMIT);
	struct guest_connection *connection;
	uint32_t host_port;

	host_stream_init(ret_stream, host_connect(setup->uds_paths[0], port, LIMIT));
	assert_true(ret_stream->watch.fd >= 0);
	guest_watch(guest, &ret_stream->watch);
	connection = guest_accept_wait(guest, port, LIMIT);
	assert_non_null(connection);
	while (host_stream_take_ok(ret_stream, &host_port) == 0)
		assert_true(guest_poll(guest, deadline_left(deadline)) > 0);
	assert_int_equal(host_port, connection->peer_port);
	return connection;
}

static void test_many_connections_at_once_keep_their_bytes_apart(void **state)
{
	static struct flow flows[MANY];
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	memset(flows, 0, sizeof(flows));
	assert_int_equal(guest_listen(guest, PORT), 0);
	for (uint32_t i = 0; i < MANY; i++) {
		struct flow *flow = &flows[i];

		flow->connection = i % 2 ? call_guest(setup, PORT, &flow->host)
					 : setup_connect(setup, 0, PORT + i, &flow->host);
		flow_begin(flow, 200 * KIB, 200 * KIB);
		flow->up = up + i * 4099;
		flow->down = down + i * 4099;
		host_stream_send(&flow->host, flow->down, flow->down_len, false);
	}
	assert_int_equal(guest_wait_until(guest, are_moved, flows, 2 * LIMIT), 0);
	for (size_t i = 0; i < MANY; i++) {
		flow_check(&flows[i]);
		assert_int_equal(guest_finish(flows[i].connection, LIMIT), 0);
		setup_end_stream(setup, 0, &flows[i].host);
	}
}

/* ---- ends of streams ---- */

static void test_a_guest_that_ends_its_stream_still_reads_the_other(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct flow flow = {0};
	struct guest_connection *connection;

	connection = flow.connection = setup_connect(setup, 0, PORT, &flow.host);
	flow_begin(&flow, 100000, 0);
	assert_int_equal(guest_wait_until(guest, is_moved, &flow, LIMIT), 0);
	assert_int_equal(guest_shutdown(connection, PACKET_SHUTDOWN_SEND), 0);
	assert_int_equal(guest_wait_until(guest, is_ended, &flow.host, LIMIT), 0);
	flow_check(&flow);

	flow.down_len = 2 * MIB;
	host_stream_send(&flow.host, down, flow.down_len, true);
	assert_int_equal(guest_wait_until(guest, has_all_down, &flow, LIMIT), 0);
	flow_check(&flow);
	/* Both ends are said now: the last word is the guest's RST. */
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, 0);
	setup_end_stream(setup, 0, &flow.host);
}

static void test_a_host_program_that_ends_its_stream_still_reads_the_other(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct flow flow = {0};
	struct guest_connection *connection;

	connection = flow.connection = setup_connect(setup, 0, PORT, &flow.host);
	flow_begin(&flow, 0, 100000);
	host_stream_send(&flow.host, down, 100000, true);
	assert_int_equal(guest_wait_until(guest, peer_said_send, connection, LIMIT), 0);
	assert_int_equal(connection->peer_shutdown, PACKET_SHUTDOWN_SEND);
	flow_check(&flow);

	flow.up_len = 2 * MIB;
	assert_int_equal(guest_wait_until(guest, is_moved, &flow, LIMIT), 0);
	flow_check(&flow);
	assert_int_equal(connection->peer_shutdown, PACKET_SHUTDOWN_SEND);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	assert_int_equal(guest_wait_until(guest, is_ended, &flow.host, LIMIT), 0);
	assert_int_equal(flow.host.error, 0);
	setup_end_stream(setup, 0, &flow.host);
}

static bool is_told(void *context)
{
	struct host_stream *host = context;

	/* Whatever the socket takes before is lost, as it is with any closed socket. */
	return send(host->watch.fd, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE;
}

static void test_a_guest_that_reads_no_more_still_sends_and_the_host_program_is_told(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct flow flow = {0};
	int64_t deadline = deadline_in(LIMIT);

	flow.connection = setup_connect(setup, 0, PORT, &flow.host);
	flow_begin(&flow, 0, 0);
	assert_int_equal(guest_shutdown(flow.connection, PACKET_SHUTDOWN_RECEIVE), 0);
	flow.connection->sink = NULL;
	while (!is_told(&flow.host)) {
		assert_true(deadline_left(deadline) > 0);
		assert_int_equal(guest_poll_for(guest, 1), 0);
	}
	flow.up_len = 2 * MIB;
	assert_int_equal(guest_wait_until(guest, is_moved, &flow, LIMIT), 0);
	flow_check(&flow);
	assert_int_equal(guest_finish(flow.connection, LIMIT), 0);
	assert_int_equal(guest_wait_until(guest, is_ended, &flow.host, LIMIT), 0);
	setup_end_stream(setup, 0, &flow.host);
}

/* Until host programs, sockets and vsockd are full: more than one window, then no more. */
static void send_until_full(struct guest_connection *const *connections, size_t n)
{
	int64_t deadline = deadline_in(LIMIT);
	bool has_sent = true, is_short = true;

	while (has_sent || (is_short && deadline_left(deadline) > 0)) {
		has_sent = false;
		is_short = false;
		for (size_t i = 0; i < n; i++) {
			uint64_t at = connections[i]->n_sent;
			ssize_t sent = guest_send(connections[i], up + at, BULK - at);

			assert_true(sent > 0 || sent == -EAGAIN);
			has_sent |= sent > 0;
			is_short |= connections[i]->n_sent <= 256 * KIB;
		}
		assert_int_equal(guest_poll_for(connections[0]->guest, QUIET), 0);
	}
}

static void test_a_slow_host_program_gets_what_a_closed_connection_left(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	struct host_stream host;
	size_t n_sent;

	connection = setup_connect(setup, 0, PORT, &host);
	host_stream_pause(&host, true);
	send_until_full(&connection, 1);
	n_sent = connection->n_sent;
	assert_true(n_sent > 256 * KIB);
	assert_int_equal(guest_close(connection), 0);
	/* The guest does not wait for the host program, which reads nothing yet. */
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, 0);
	host_stream_pause(&host, false);
	assert_int_equal(guest_wait_until(guest, is_ended, &host, LIMIT), 0);
	assert_int_equal(host.error, 0);
	assert_int_equal(host.n_received, n_sent);
	assert_memory_equal(host.received, up, n_sent);
	setup_end_stream(setup, 0, &host);
}

/* As much as the socket takes while nobody reads. */
static size_t write_until_full(int fd)
{
	size_t n_written = 0;
	ssize_t n;

	while ((n = send(fd, down + n_written, BULK - n_written, MSG_NOSIGNAL)) > 0)
		n_written += (size_t)n;
	assert_int_equal(errno, EAGAIN);
	return n_written;
}

static bool has_buffer_full(void *context)
{
	const struct guest_connection *connection = context;

	return connection->n_received >= connection->buf_alloc;
}

static void test_a_slow_guest_gets_what_a_closed_host_program_left(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){.buf_alloc = 32 * KIB});
	struct guest_connection *connection;
	struct host_stream host;
	size_t n_written;

	connection = setup_connect(setup, 0, PORT, &host);
	n_written = write_until_full(host.watch.fd);
	assert_true(n_written > 64 * KIB);
	setup_end_stream(setup, 0, &host);
	assert_int_equal(guest_wait_until(guest, has_buffer_full, connection, LIMIT), 0);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	/* The end comes behind the bytes, not before. */
	assert_false(connection->peer_shutdown & PACKET_SHUTDOWN_SEND);
	assert_int_equal(connection->state, GUEST_ESTABLISHED);
	assert_int_equal(guest_receive_all(connection, received, BULK, LIMIT), n_written);
	assert_memory_equal(received, down, n_written);
	assert_int_equal(connection->peer_shutdown, PACKET_SHUTDOWN_BOTH);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
}

/* ---- those who do not read ---- */

/* Resident memory of one process, in bytes. */
static int64_t resident(pid_t pid)
{
	char path[64];
	FILE *file;
	long n_pages;

	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	file = fopen(path, "r");
	assert_non_null(file);
	assert_int_equal(fscanf(file, "%*d %ld", &n_pages), 1);
	fclose(file);
	return n_pages * sysconf(_SC_PAGESIZE);
}

#define STALLED 32

static void test_host_programs_that_do_not_read_hold_up_nobody_and_are_bounded(void **state)
{
	struct setup *setup = *state;
	/* Few packets in flight: pages of the guest count as the worker's once it touched them. */
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){.n_tx_buffers = 4});
	struct guest_connection *stalled[STALLED];
	struct host_stream hosts[STALLED];
	pid_t worker = setup_worker(setup, 0);
	int64_t before, full;

	if (setup->replacer) {
		print_message("skipped: the times of one worker are read, and others follow it\n");
		skip();
	}
	move(setup, MIB, MIB, PACKET_PAYLOAD_MAX);
	before = resident(worker);
	for (uint32_t i = 0; i < STALLED; i++) {
		stalled[i] = setup_connect(setup, 0, PORT + 1 + i, &hosts[i]);
		host_stream_pause(&hosts[i], true);
	}
	send_until_full(stalled, STALLED);
	for (size_t i = 0; i < STALLED; i++)
		assert_true(stalled[i]->n_sent > 256 * KIB);
	move(setup, 4 * MIB, 4 * MIB, PACKET_PAYLOAD_MAX);
	setup_check_nobody_spins(setup);

	/* The buffers are in use, each with a chunk that is not full, and little else. */
	full = resident(worker);
	assert_in_range(full - before, STALLED * 128 * KIB, STALLED * (256 + 32) * KIB + 3 * MIB);
	for (size_t i = 0; i < STALLED; i++) {
		assert_int_equal(guest_close(stalled[i]), 0);
		assert_int_equal(guest_wait_state(stalled[i], GUEST_CLOSED, LIMIT), 0);
		host_stream_pause(&hosts[i], false);
		assert_int_equal(guest_wait_until(guest, is_ended, &hosts[i], LIMIT), 0);
		setup_end_stream(setup, 0, &hosts[i]);
	}
	/* 4 MiB are kept for the next time. */
	assert_true(resident(worker) - before < 6 * (int64_t)MIB);
}

static bool has_established(void *context)
{
	return ((struct guest_connection *)context)->state == GUEST_ESTABLISHED;
}

/* Control packets as they come to a guest that has been away. */
struct seen {
	uint32_t n_rst, fwd_cnt;
};

static bool note_control(void *context, const struct packet *packet, const struct iovec *payload,
			 size_t n_payload)
{
	struct seen *seen = context;

	(void)payload;
	(void)n_payload;
	seen->n_rst += packet->op == PACKET_RST;
	if (packet->src_port == PORT)
		seen->fwd_cnt = packet->fwd_cnt;
	return false;
}

/* Wait for the device to use a buffer without taking it: the guest gives no new ones. */
static void wait_used(struct ring *ring)
{
	while (!ring_expect_call(ring))
		assert_int_equal(ring_wait(ring, LIMIT), 0);
}

static void test_a_guest_without_rx_buffers_loses_no_packet_and_costs_nothing(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){.n_rx_buffers = 1});
	struct guest_connection *bulk, *ending, *late;
	struct packet nobodys, question;
	struct host_stream host, end_of_host;
	struct seen seen = {0};
	int listener = host_listen(setup->uds_paths[0], PORT + 2), fd;

	bulk = setup_connect(setup, 0, PORT, &host);
	ending = setup_connect(setup, 0, PORT + 1, &end_of_host);
	assert_int_equal(host_write(host.watch.fd, down, 100 * KIB, LIMIT), 0);
	wait_used(&guest->rings[GUEST_RX]);

	/* The guest is away from here on: nothing takes what is in its rx ring. */
	assert_int_equal(guest_send(bulk, up, 200 * KIB), 200 * KIB);
	assert_int_equal(host_read(host.watch.fd, received, 200 * KIB, LIMIT), 0);
	assert_memory_equal(received, up, 200 * KIB);
	assert_int_equal(guest_shutdown(ending, PACKET_SHUTDOWN_SEND), 0);
	assert_int_equal(host_wait_end(end_of_host.watch.fd, LIMIT), 0);
	late = guest_connect(guest, PACKET_HOST_CID, PORT + 2);
	assert_non_null(late);
	fd = host_accept(listener, LIMIT);
	assert_true(fd >= 0);
	nobodys = guest_packet(bulk, PACKET_CREDIT_UPDATE);
	nobodys.src_port = 1;
	assert_int_equal(guest_send_packet(guest, &nobodys, NULL, 0, NULL), 0);
	question = guest_packet(bulk, PACKET_CREDIT_REQUEST);
	assert_int_equal(guest_send_packet(guest, &question, NULL, 0, NULL), 0);
	setup_check_nobody_spins(setup);
	assert_int_equal((uint16_t)(ring_used_idx(&guest->rings[GUEST_RX]) -
				    guest->rings[GUEST_RX].used_idx),
			 1);

	guest->on_packet = note_control;
	guest->on_packet_context = &seen;
	assert_int_equal(guest_receive_all(bulk, received, 100 * KIB, LIMIT), 100 * KIB);
	assert_memory_equal(received, down, 100 * KIB);
	assert_int_equal(guest_wait_until(guest, has_established, late, LIMIT), 0);
	/* The answer to the CREDIT_REQUEST rides on any packet. */
	assert_int_equal(seen.fwd_cnt, 200 * KIB);
	assert_int_equal(seen.n_rst, 1);
	assert_int_equal(guest_finish(bulk, LIMIT), 0);
	assert_int_equal(guest_finish(ending, LIMIT), 0);
	assert_int_equal(guest_finish(late, LIMIT), 0);
	guest->on_packet = NULL;
	setup_end_stream(setup, 0, &host);
	setup_end_stream(setup, 0, &end_of_host);
	close(fd);
	close(listener);
}

static void test_idle_connections_cost_nothing(void **state)
{
	static struct host_stream hosts[MANY];
	struct setup *setup = *state;

	setup_guest(setup, 0, (struct guest_options){0});
	for (uint32_t i = 0; i < MANY; i++)
		setup_connect(setup, 0, PORT + i, &hosts[i]);
	move(setup, 1000, 1000, PACKET_PAYLOAD_MAX);
	setup_check_nobody_spins(setup);
	for (uint32_t i = 0; i < MANY; i++)
		setup_end_stream(setup, 0, &hosts[i]);
}

/* ---- credit ---- */

static void test_a_guest_that_does_not_read_gets_its_credit_and_no_more(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){.buf_alloc = 4096});
	struct guest_connection *connection;
	struct host_stream host;

	connection = setup_connect(setup, 0, PORT, &host);
	host_stream_send(&host, down, 256 * KIB, true);
	assert_int_equal(guest_wait_until(guest, has_buffer_full, connection, LIMIT), 0);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_int_equal(connection->n_received, 4096);
	setup_check_nobody_spins(setup);
	assert_int_equal(guest_receive_all(connection, received, BULK, LIMIT), 256 * KIB);
	assert_memory_equal(received, down, 256 * KIB);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &host);
}

/* As setsockopt(SO_VM_SOCKETS_BUFFER_SIZE) in a Linux guest. */
static void resize(struct guest_connection *connection, uint32_t buf_alloc)
{
	struct packet packet;

	connection->buf_alloc = buf_alloc;
	if (buf_alloc > connection->largest_buf_alloc)
		connection->largest_buf_alloc = buf_alloc;
	packet = guest_packet(connection, PACKET_CREDIT_UPDATE);
	assert_int_equal(guest_send_packet(connection->guest, &packet, NULL, 0, NULL), 0);
}

/* So much has come, and not a byte more. */
static void check_received(struct guest_connection *connection, uint64_t n)
{
	int64_t deadline = deadline_in(LIMIT);

	while (connection->n_received < n && deadline_left(deadline) > 0)
		assert_true(guest_poll(connection->guest, deadline_left(deadline)) >= 0);
	assert_int_equal(guest_poll_for(connection->guest, QUIET), 0);
	assert_int_equal(connection->n_received, n);
}

static void test_a_buffer_may_shrink_below_what_is_in_it_and_grow_again(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){.buf_alloc = 64 * KIB});
	struct guest_connection *connection;
	struct host_stream host;

	connection = setup_connect(setup, 0, PORT, &host);
	host_stream_send(&host, down, MIB, true);
	check_received(connection, 64 * KIB);
	resize(connection, 16 * KIB);
	check_received(connection, 64 * KIB);
	assert_int_equal(guest_receive(connection, received, 40 * KIB), 40 * KIB);
	check_received(connection, 64 * KIB); /* 24 of 16 KiB are in use */
	assert_int_equal(guest_receive(connection, received + 40 * KIB, 16 * KIB), 16 * KIB);
	check_received(connection, 72 * KIB); /* 8 were, now 16 are */
	resize(connection, 128 * KIB);
	check_received(connection, (56 + 128) * KIB);
	resize(connection, 0);
	assert_int_equal(guest_receive(connection, received + 56 * KIB, 128 * KIB), 128 * KIB);
	check_received(connection, (56 + 128) * KIB);
	resize(connection, 64 * KIB);
	assert_int_equal(guest_receive_all(connection, received + 184 * KIB, BULK, LIMIT),
			 840 * KIB);
	assert_memory_equal(received, down, MIB);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	guest_poll(guest, 0);
	setup_end_stream(setup, 0, &host);
}

static void test_a_buffer_that_changes_all_the_time_loses_nothing(void **state)
{
	static const uint32_t sizes[] = {4096, 65536, 100, 200000, 1, 30000, 1024};
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	int64_t deadline = deadline_in(LIMIT);
	struct host_stream host;
	size_t n_received = 0;

	connection = setup_connect(setup, 0, PORT, &host);
	host_stream_send(&host, down, 4 * MIB, true);
	for (size_t i = 0; n_received < 4 * MIB; i++) {
		ssize_t n = guest_receive(connection, received + n_received, 20000);

		assert_true(n > 0 || n == -EAGAIN);
		n_received += n > 0 ? (size_t)n : 0;
		assert_true(deadline_left(deadline) > 0);
		if (n > 0)
			resize(connection, sizes[i % (sizeof(sizes) / sizeof(sizes[0]))]);
		assert_true(guest_poll(guest, n > 0 ? 0 : LIMIT) >= 0);
	}
	assert_memory_equal(received, down, 4 * MIB);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &host);
}

static void test_a_tiny_buffer_gets_everything_in_the_end(void **state)
{
	static const struct {
		uint32_t buf_alloc, len;
	} cases[] = {{1, 500}, {43, 10000}, {1000, 100000}, {4096, MIB}};
	struct setup *setup = *state;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		setup_guest(setup, 0, (struct guest_options){.buf_alloc = cases[i].buf_alloc});
		move(setup, 0, cases[i].len, PACKET_PAYLOAD_MAX);
		setup_end_guest(setup, 0);
	}
}

/*
 * Linux sends no more ahead than its own buffer is large, however large ours is
 * (since CVE-2026-23086), and does not ask: it has to be told in time.
 */
static void test_a_guest_with_a_small_buffer_is_told_in_time_that_it_may_send(void **state)
{
	static const uint32_t sizes[] = {1000, 4096, 64 * KIB, 128 * KIB};
	struct setup *setup = *state;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		setup_guest(setup, 0, (struct guest_options){.buf_alloc = sizes[i]});
		move(setup, MIB, 0, PACKET_PAYLOAD_MAX);
		setup_end_guest(setup, 0);
	}
}

struct counted {
	uint32_t n_rw, n_credit_request;
	uint64_t n_wanted;
};

static bool count_packets(void *context, const struct packet *packet, const struct iovec *payload,
			  size_t n_payload)
{
	struct counted *counted = context;

	(void)payload;
	(void)n_payload;
	counted->n_rw += packet->op == PACKET_RW;
	counted->n_credit_request += packet->op == PACKET_CREDIT_REQUEST;
	return false;
}

static bool has_wanted(void *context)
{
	const struct guest_connection *connection = context;
	const struct counted *counted = connection->guest->on_packet_context;

	return connection->n_received >= counted->n_wanted;
}

#define SMALL_WRITES 3000

/* What was written has come, or vsockd sleeps and it has not. */
static bool wait_wanted(struct setup *setup, struct guest_connection *connection)
{
	int64_t deadline = deadline_in(LIMIT);
	bool has_slept = false;

	while (guest_wait_until(connection->guest, has_wanted, connection, QUIET) != 0) {
		if (has_slept)
			return false;
		assert_true(deadline_left(deadline) > 0);
		has_slept = daemon_is_asleep(&setup->daemon);
	}
	return true;
}

/* One byte at a time, each seen by vsockd alone as long as it goes on. How many went so. */
static uint32_t write_bytes_apart(struct setup *setup, struct guest_connection *connection, int fd)
{
	struct counted *counted = connection->guest->on_packet_context;

	for (uint32_t i = 0; i < SMALL_WRITES; i++) {
		assert_int_equal(host_write(fd, down + i, 1, LIMIT), 0);
		counted->n_wanted = i + 1;
		if (!wait_wanted(setup, connection))
			return i;
	}
	return SMALL_WRITES;
}

/*
 * Recent Linux charges a fixed price for each unread packet and resets the
 * connection when they are too many, whatever credit in bytes it gave.
 */
static void test_unread_packets_are_never_more_than_linux_bears(void **state)
{
	static const uint32_t sizes[] = {16 * KIB, 256 * KIB};
	struct setup *setup = *state;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct guest *guest =
			setup_guest(setup, 0, (struct guest_options){.buf_alloc = sizes[i]});
		struct counted counted = {0};
		struct guest_connection *connection;
		struct host_stream host;
		uint32_t n_apart;

		connection = setup_connect(setup, 0, PORT, &host);
		guest->on_packet = count_packets;
		guest->on_packet_context = &counted;
		n_apart = write_bytes_apart(setup, connection, host.watch.fd);
		assert_in_range(n_apart, sizes[i] / 2048, sizes[i] / 1024);
		assert_int_equal(host_write(host.watch.fd, down + n_apart + 1,
					    SMALL_WRITES - n_apart - 1, LIMIT),
				 0);
		assert_int_equal(guest_poll_for(guest, 2 * QUIET), 0);
		assert_in_range(counted.n_rw, sizes[i] / 2048, sizes[i] / 1024);
		assert_int_equal(guest_receive_all(connection, received, SMALL_WRITES, LIMIT),
				 SMALL_WRITES);
		assert_memory_equal(received, down, SMALL_WRITES);
		assert_int_equal(guest_finish(connection, LIMIT), 0);
		guest->on_packet = NULL;
		setup_end_stream(setup, 0, &host);
		setup_end_guest(setup, 0);
	}
}

/* Linux says nothing of its own while much of its buffer is free. */
static void test_a_guest_that_reads_in_silence_is_asked_and_gets_every_small_write(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct counted counted = {0};
	struct flow flow = {0};

	flow.connection = setup_connect(setup, 0, PORT, &flow.host);
	flow_begin(&flow, 0, SMALL_WRITES);
	host_stream_send(&flow.host, NULL, 0, false);
	guest->on_packet = count_packets;
	guest->on_packet_context = &counted;
	assert_int_equal(write_bytes_apart(setup, flow.connection, flow.host.watch.fd),
			 SMALL_WRITES);
	flow_check(&flow);
	assert_in_range(counted.n_credit_request, 1, SMALL_WRITES / 10);
	assert_int_equal(guest_finish(flow.connection, LIMIT), 0);
	guest->on_packet = NULL;
	setup_end_stream(setup, 0, &flow.host);
}

#define WITH_SETUP(test) cmocka_unit_test_setup_teardown(test, setup_start_one, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_SETUP(test_a_front_end_that_comes_again_and_again_is_answered_each_time),
		WITH_SETUP(test_any_layout_of_descriptors_carries_both_directions),
		WITH_SETUP(test_packets_of_any_size_arrive),
		WITH_SETUP(test_rx_buffers_of_any_size_are_filled),
		WITH_SETUP(test_a_ring_of_any_size_carries_both_directions),
		WITH_SETUP(test_buffers_may_lie_across_borders_of_memory_regions),
		WITH_SETUP(test_bulk_moves_both_ways_at_once),
		WITH_SETUP(test_many_connections_at_once_keep_their_bytes_apart),
		WITH_SETUP(test_a_guest_that_ends_its_stream_still_reads_the_other),
		WITH_SETUP(test_a_host_program_that_ends_its_stream_still_reads_the_other),
		WITH_SETUP(
			test_a_guest_that_reads_no_more_still_sends_and_the_host_program_is_told),
		WITH_SETUP(test_a_slow_host_program_gets_what_a_closed_connection_left),
		WITH_SETUP(test_a_slow_guest_gets_what_a_closed_host_program_left),
		WITH_SETUP(test_host_programs_that_do_not_read_hold_up_nobody_and_are_bounded),
		WITH_SETUP(test_a_guest_without_rx_buffers_loses_no_packet_and_costs_nothing),
		WITH_SETUP(test_idle_connections_cost_nothing),
		WITH_SETUP(test_a_guest_that_does_not_read_gets_its_credit_and_no_more),
		WITH_SETUP(test_a_buffer_may_shrink_below_what_is_in_it_and_grow_again),
		WITH_SETUP(test_a_buffer_that_changes_all_the_time_loses_nothing),
		WITH_SETUP(test_a_tiny_buffer_gets_everything_in_the_end),
		WITH_SETUP(test_a_guest_with_a_small_buffer_is_told_in_time_that_it_may_send),
		WITH_SETUP(test_unread_packets_are_never_more_than_linux_bears),
		WITH_SETUP(test_a_guest_that_reads_in_silence_is_asked_and_gets_every_small_write),
	};

	return cmocka_run_group_tests(tests, fill_streams, NULL);
}
