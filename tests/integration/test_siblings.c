/* SPDX-License-Identifier: Apache-2.0 */

/* Guests that reach each other by CID: who may, what travels, and what the end of one does. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/integration/setup.h"

#define LIMIT SETUP_LIMIT
#define PORT  1234
#define QUIET 150 /* ms, for what must not happen */

/* ---- two guests in one thread ---- */

struct two {
	struct setup *setup;
	struct guest *guests[2];
};

/* What can be done in either; a moment's wait when there was nothing. */
static void move(const struct two *two)
{
	int n[2];

	for (size_t i = 0; i < 2; i++) {
		n[i] = guest_poll(two->guests[i], 0);
		assert_true(n[i] >= 0);
	}
	if (n[0] + n[1] == 0)
		assert_true(guest_poll(two->guests[0], 1) >= 0);
}

static void move_for(const struct two *two, int milliseconds)
{
	int64_t deadline = deadline_in(milliseconds);

	while (deadline_left(deadline) > 0)
		move(two);
}

static struct two start_guests(struct setup *setup)
{
	struct two two = {.setup = setup};

	for (size_t i = 0; i < 2; i++)
		two.guests[i] = setup_guest(setup, i, (struct guest_options){0});
	return two;
}

static void wait_state(const struct two *two, const struct guest_connection *connection,
		       enum guest_state state)
{
	int64_t deadline = deadline_in(LIMIT);

	while (connection->state != state) {
		if (deadline_left(deadline) == 0)
			fail_msg("state %d instead of %d", connection->state, state);
		move(two);
	}
}

static struct guest_connection *wait_accepted(const struct two *two, size_t guest, uint32_t port)
{
	int64_t deadline = deadline_in(LIMIT);
	struct guest_connection *connection;

	while (!(connection = guest_accept(two->guests[guest], port))) {
		if (deadline_left(deadline) == 0)
			fail_msg("no connection");
		move(two);
	}
	return connection;
}

/* Both ends of a connection: [0] of the guest that asks, [1] of the one that accepts. */
struct joined {
	struct guest_connection *ends[2];
};

static struct joined join(const struct two *two, size_t from, uint32_t port)
{
	size_t to = 1 - from;
	struct joined joined;

	assert_int_equal(guest_listen(two->guests[to], port), 0);
	joined.ends[0] = guest_connect(two->guests[from], setup_cid(to), port);
	assert_non_null(joined.ends[0]);
	joined.ends[1] = wait_accepted(two, to, port);
	wait_state(two, joined.ends[0], GUEST_ESTABLISHED);
	assert_int_equal(joined.ends[1]->peer_cid, setup_cid(from));
	assert_int_equal(joined.ends[1]->peer_port, joined.ends[0]->port);
	guest_unlisten(two->guests[to], port);
	return joined;
}

static void send_text(const struct two *two, struct guest_connection *from,
		      struct guest_connection *to, const char *text)
{
	size_t len = strlen(text), n = 0;
	int64_t deadline = deadline_in(LIMIT);
	char bytes[64];

	assert_int_equal(guest_send(from, text, len), len);
	while (n < len) {
		ssize_t r = guest_receive(to, bytes + n, len - n);

		if (deadline_left(deadline) == 0)
			fail_msg("%zu of %zu bytes", n, len);
		if (r > 0)
			n += (size_t)r;
		else
			assert_int_equal(r, -EAGAIN);
		move(two);
	}
	assert_memory_equal(bytes, text, len);
}

/* The first end closes in an orderly way; both are over and without an error. */
static void finish(const struct two *two, struct joined *joined)
{
	assert_int_equal(guest_close(joined->ends[0]), 0);
	wait_state(two, joined->ends[0], GUEST_CLOSED);
	wait_state(two, joined->ends[1], GUEST_CLOSED);
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(joined->ends[i]->error, 0);
		guest_forget(joined->ends[i]);
	}
}

static void wait_reset(const struct two *two, struct guest_connection *connection)
{
	wait_state(two, connection, GUEST_CLOSED);
	assert_int_equal(connection->error, ECONNRESET);
	guest_forget(connection);
}

/* ---- who may ---- */

static void test_guests_of_a_common_group_reach_each_other(void **state)
{
	struct two two = start_guests(*state);

	for (size_t from = 0; from < 2; from++) {
		struct joined joined = join(&two, from, PORT);

		send_text(&two, joined.ends[0], joined.ends[1], "there");
		send_text(&two, joined.ends[1], joined.ends[0], "and back");
		finish(&two, &joined);
	}
	/* Nobody has the memory of both. */
	assert_int_not_equal(setup_worker(two.setup, 0), setup_worker(two.setup, 1));
}

static void refused(struct setup *setup, struct guest *guest, uint64_t cid, const char *reason)
{
	struct guest_connection *connection = guest_connect(guest, cid, PORT);
	char line[200];

	assert_non_null(connection);
	/* At once: long before a guest gives up by itself. */
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
	guest_forget(connection);
	snprintf(line, sizeof(line), "guest refused: CID %u, port %u: %s", (unsigned int)cid, PORT,
		 reason);
	assert_int_equal(daemon_wait_log(&setup->daemon, line, LIMIT), 0);
}

static void test_who_is_not_there_is_refused_at_once(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	refused(setup, guest, 99, "no guest has that CID");
	refused(setup, guest, UINT32_MAX - 1, "no guest has that CID");
	refused(setup, guest, setup_cid(1), "that guest has no driver");
	setup_guest(setup, 1, (struct guest_options){0});
	setup_end_guest(setup, 1);
	refused(setup, guest, setup_cid(1), "that guest has no driver");
}

static void test_guests_without_a_common_group_do_not_meet(void **state)
{
	static const char *const stranger[] = {
		"--vm", "guest-cid=9,socket=@/stranger,uds-path=@/strange,groups=c+d", NULL};
	struct setup *setup = *state;
	struct guest_options options = {0};
	struct guest other;
	char socket[128];
	struct two two;
	struct joined joined;

	setup_start(setup, 2, "groups=a+b", stranger);
	snprintf(socket, sizeof(socket), "%s/stranger", setup->daemon.directory);
	options.socket = socket;
	assert_int_equal(guest_start(&other, &options), 0);
	two = start_guests(setup);
	assert_int_equal(guest_listen(&other, PORT), 0);
	refused(setup, two.guests[0], 9, "that guest is in none of its groups");
	refused(setup, &other, setup_cid(0), "that guest is in none of its groups");
	assert_string_equal(guest_violations(&other), "");
	guest_end(&other);
	joined = join(&two, 0, PORT);
	finish(&two, &joined);
	setup_stop(setup);
}

static void test_a_guest_that_does_not_listen_refuses(void **state)
{
	struct two two = start_guests(*state);
	struct guest_connection *connection = guest_connect(two.guests[0], setup_cid(1), PORT);

	wait_reset(&two, connection);
	assert_int_equal(daemon_wait_log(&two.setup->daemon, "that guest did not accept", LIMIT),
			 0);
}

/* ---- what travels ---- */

static bool swallow_response(void *context, const struct packet *packet,
			     const struct iovec *payload, size_t n_payload)
{
	struct packet *request = context;

	(void)payload;
	(void)n_payload;
	if (packet->op != PACKET_REQUEST)
		return false;
	*request = *packet;
	return true;
}

static void wait_request(const struct two *two, const struct packet *request)
{
	int64_t deadline = deadline_in(LIMIT);

	while (request->op != PACKET_REQUEST) {
		assert_true(deadline_left(deadline) > 0);
		move(two);
	}
}

static void test_nobody_is_told_of_success_before_the_other_guest_accepts(void **state)
{
	struct two two = start_guests(*state);
	struct packet request = {0}, rst = {0};
	struct guest_connection *connection;

	two.guests[1]->on_packet = swallow_response;
	two.guests[1]->on_packet_context = &request;
	connection = guest_connect(two.guests[0], setup_cid(1), PORT);
	wait_request(&two, &request);
	move_for(&two, QUIET);
	assert_int_equal(request.src_cid, setup_cid(0));
	assert_int_equal(request.src_port, connection->port);
	assert_int_equal(connection->state, GUEST_CONNECTING);

	two.guests[1]->on_packet = NULL;
	rst.src_cid = setup_cid(1);
	rst.dst_cid = setup_cid(0);
	rst.src_port = PORT;
	rst.dst_port = connection->port;
	rst.type = PACKET_STREAM;
	rst.op = PACKET_RST;
	assert_int_equal(guest_send_packet(two.guests[1], &rst, NULL, 0, NULL), 0);
	wait_reset(&two, connection);
}

static void test_a_guest_that_gives_up_takes_its_request_back(void **state)
{
	struct two two = start_guests(*state);
	struct guest_connection *connection;
	struct packet request = {0}, packet;
	struct joined joined;

	two.guests[1]->on_packet = swallow_response;
	two.guests[1]->on_packet_context = &request;
	connection = guest_connect(two.guests[0], setup_cid(1), PORT);
	wait_request(&two, &request);
	packet = guest_packet(connection, PACKET_RST);
	assert_int_equal(guest_send_packet(two.guests[0], &packet, NULL, 0, NULL), 0);
	connection->is_excused = true;
	guest_abort(connection);
	guest_forget(connection);
	move_for(&two, QUIET);
	two.guests[1]->on_packet = NULL;
	joined = join(&two, 0, PORT);
	finish(&two, &joined);
}

static void test_half_a_close_leaves_the_other_direction(void **state)
{
	struct two two = start_guests(*state);
	struct joined joined = join(&two, 0, PORT);
	char byte;

	send_text(&two, joined.ends[0], joined.ends[1], "last words");
	assert_int_equal(guest_shutdown(joined.ends[0], PACKET_SHUTDOWN_SEND), 0);
	while (!(joined.ends[1]->peer_shutdown & PACKET_SHUTDOWN_SEND))
		move(&two);
	assert_int_equal(joined.ends[1]->peer_shutdown, PACKET_SHUTDOWN_SEND);
	assert_int_equal(guest_receive(joined.ends[1], &byte, 1), 0);
	send_text(&two, joined.ends[1], joined.ends[0], "an answer to that");
	finish(&two, &joined);
}

static void test_a_reset_travels_behind_what_was_sent(void **state)
{
	struct two two = start_guests(*state);

	for (size_t from = 0; from < 2; from++) {
		struct joined joined = join(&two, 0, PORT);
		struct guest_connection *aborts = joined.ends[from], *other = joined.ends[1 - from];
		uint8_t bytes[5000], got[5000];

		pattern_fill(bytes, sizeof(bytes), 1, 0);
		assert_int_equal(guest_send(aborts, bytes, sizeof(bytes)), sizeof(bytes));
		assert_int_equal(guest_abort(aborts), 0);
		wait_state(&two, other, GUEST_CLOSED);
		assert_int_equal(other->error, ECONNRESET);
		assert_int_equal(guest_receive(other, got, sizeof(got)), sizeof(got));
		assert_true(pattern_is(got, sizeof(got), 1, 0));
		guest_forget(aborts);
		guest_forget(other);
	}
}

/* ---- bulk ---- */

struct flow {
	struct guest_connection *from, *to;
	uint64_t seed;
	size_t len, n_sent, n_received;
	bool is_wrong;
};

static void flow_send(struct flow *flow)
{
	static uint8_t bytes[64 * 1024];
	size_t len = flow->len - flow->n_sent;
	ssize_t n;

	if (len == 0)
		return;
	if (len > sizeof(bytes))
		len = sizeof(bytes);
	pattern_fill(bytes, len, flow->seed, flow->n_sent);
	n = guest_send(flow->from, bytes, len);
	if (n > 0)
		flow->n_sent += (size_t)n;
	else
		assert_int_equal(n, -EAGAIN);
}

static bool flow_receive(struct flow *flow)
{
	static uint8_t bytes[64 * 1024];
	ssize_t n = guest_receive(flow->to, bytes, sizeof(bytes));

	if (n == -EAGAIN)
		return false;
	assert_true(n > 0);
	assert_true(pattern_is(bytes, (size_t)n, flow->seed, flow->n_received));
	flow->n_received += (size_t)n;
	return true;
}

static void test_bulk_in_both_directions_at_once_loses_no_byte(void **state)
{
	struct two two = start_guests(*state);
	struct joined joined = join(&two, 0, PORT);
	struct flow flows[2] = {
		{joined.ends[0], joined.ends[1], 1, 24u << 20, 0, 0, false},
		{joined.ends[1], joined.ends[0], 2, 24u << 20, 0, 0, false},
	};
	int64_t deadline = deadline_in(4 * LIMIT);

	while (flows[0].n_received < flows[0].len || flows[1].n_received < flows[1].len) {
		if (deadline_left(deadline) == 0)
			fail_msg("%zu and %zu bytes arrived", flows[0].n_received,
				 flows[1].n_received);
		for (size_t i = 0; i < 2; i++) {
			flow_send(&flows[i]);
			flow_receive(&flows[i]);
		}
		move(&two);
	}
	finish(&two, &joined);
}

/* What is known of a flow that may have come to its end. */
struct rest {
	int64_t quiet; /* nothing has moved until then; 0: it is not looked at yet */
	bool has_slept;
};

/* Nothing moves for a while, and not because a worker has no processor. */
static bool is_stuck(const struct two *two, struct rest *rest, bool has_moved)
{
	bool has_slept = rest->has_slept;

	if (rest->quiet != 0 && !has_moved && deadline_left(rest->quiet) > 0)
		return false;
	rest->quiet = deadline_in(QUIET);
	rest->has_slept = !has_moved && daemon_is_asleep(&two->setup->daemon);
	/* What was done before it slept the guests have seen since. */
	return has_slept && rest->has_slept;
}

static void send_until_stuck(const struct two *two, struct flow *flow)
{
	int64_t deadline = deadline_in(LIMIT);
	struct rest rest = {0};
	size_t before;

	do {
		if (deadline_left(deadline) == 0)
			fail_msg("%zu bytes were taken, and more is", flow->n_sent);
		before = flow->n_sent;
		flow_send(flow);
		move(two);
	} while (!is_stuck(two, &rest, flow->n_sent != before));
}

static void send_message(const struct two *two, struct guest_connection *from,
			 struct guest_connection *to, size_t len, uint32_t flags)
{
	static uint8_t bytes[256 * 1024];
	int64_t deadline = deadline_in(LIMIT);
	ssize_t n;

	pattern_fill(bytes, len, len, 0);
	assert_int_equal(guest_send_message(from, bytes, len, flags, LIMIT), 0);
	while ((n = guest_receive_message(to, bytes, sizeof(bytes))) == -EAGAIN) {
		assert_true(deadline_left(deadline) > 0);
		move(two);
	}
	assert_int_equal(n, len);
	assert_true(pattern_is(bytes, len, len, 0));
	assert_int_equal(to->has_ended_record, flags == PACKET_EOR);
}

static void connect_messages(const struct two *two, struct guest_connection *ends[2])
{
	assert_int_equal(guest_listen_messages(two->guests[1], PORT), 0);
	ends[0] = guest_connect_messages(two->guests[0], setup_cid(1), PORT);
	ends[1] = wait_accepted(two, 1, PORT);
	wait_state(two, ends[0], GUEST_ESTABLISHED);
}

static void close_messages(const struct two *two, struct guest_connection *ends[2])
{
	assert_int_equal(guest_close(ends[0]), 0);
	wait_state(two, ends[0], GUEST_CLOSED);
	wait_state(two, ends[1], GUEST_CLOSED);
	assert_int_equal(ends[1]->error, 0);
	guest_forget(ends[0]);
	guest_forget(ends[1]);
}

static void test_messages_between_guests_stay_whole(void **state)
{
	static const size_t lens[] = {0, 1, 4052, 4053, 65536, 65537, 200000, 0, 0, 7};
	struct two two = start_guests(*state);
	struct guest_connection *ends[2];

	connect_messages(&two, ends);
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		send_message(&two, ends[0], ends[1], lens[i], 0);
		send_message(&two, ends[1], ends[0], lens[i], 0);
	}
	close_messages(&two, ends);
}

static void test_the_end_of_a_record_travels_between_guests(void **state)
{
	static const size_t lens[] = {1, 4053, 0, 65537, 200000, 0, 7};
	struct two two = start_guests(*state);
	struct guest_connection *ends[2];

	connect_messages(&two, ends);
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		send_message(&two, ends[0], ends[1], lens[i], PACKET_EOR);
		send_message(&two, ends[0], ends[1], lens[i], 0);
		send_message(&two, ends[1], ends[0], lens[i], PACKET_EOR);
	}
	close_messages(&two, ends);
}

/* What waits in the workers' buffers, a socket takes as it takes the rest. */
static void test_records_wait_for_a_slow_guest(void **state)
{
	static uint8_t bytes[30000], received[30000];
	struct two two = start_guests(*state);
	int64_t deadline = deadline_in(LIMIT);
	struct guest_connection *ends[2];
	struct rest rest = {0};
	uint32_t n_sent = 0;
	bool has_sent;

	connect_messages(&two, ends);
	/* All that there is credit for; then one more, which goes in part or not at all. */
	do {
		uint32_t n_unread = ends[0]->tx_cnt - ends[0]->peer_fwd_cnt;

		has_sent = n_unread + sizeof(bytes) <= ends[0]->peer_buf_alloc;
		assert_true(deadline_left(deadline) > 0);
		if (has_sent)
			assert_int_equal(guest_send_message(ends[0], bytes, sizeof(bytes),
							    n_sent++ % 3 ? 0 : PACKET_EOR, LIMIT),
					 0);
		assert_true(guest_poll(two.guests[0], 1) >= 0);
	} while (!is_stuck(&two, &rest, has_sent));
	while (guest_send_message(ends[0], bytes, sizeof(bytes), n_sent % 3 ? 0 : PACKET_EOR,
				  QUIET) == 0)
		n_sent++;
	assert_true(n_sent > 10);
	for (uint32_t i = 0; i < n_sent; i++) {
		ssize_t n;

		while ((n = guest_receive_message(ends[1], received, sizeof(received))) ==
		       -EAGAIN) {
			assert_true(deadline_left(deadline) > 0);
			move(&two);
		}
		assert_int_equal(n, sizeof(bytes));
		assert_int_equal(ends[1]->has_ended_record, i % 3 == 0);
	}
	close_messages(&two, ends);
}

static void test_a_guest_that_has_no_messages_refuses_them(void **state)
{
	struct setup *setup = *state;
	struct two two = {.setup = setup};
	struct guest_connection *connection;

	two.guests[0] = setup_guest(setup, 0, (struct guest_options){0});
	two.guests[1] =
		setup_guest(setup, 1, (struct guest_options){.features = BIT64(VIRTIO_VERSION_1)});
	assert_int_equal(guest_listen(two.guests[1], PORT), 0);
	connection = guest_connect_messages(two.guests[0], setup_cid(1), PORT);
	wait_state(&two, connection, GUEST_CLOSED);
	assert_int_equal(connection->error, ECONNRESET);
	guest_forget(connection);
}

static void test_a_slow_receiver_holds_the_sender_up_and_costs_little(void **state)
{
	struct two two = start_guests(*state);
	struct joined joined = join(&two, 0, PORT), other = join(&two, 1, PORT + 1);
	struct flow flow = {joined.ends[0], joined.ends[1], 3, 64u << 20, 0, 0, false};
	int64_t deadline;

	send_until_stuck(&two, &flow);
	/* The receiver's buffer, a socket's, the sender's worker's, and the packets between. */
	assert_in_range(flow.n_sent, 512u << 10, 2u << 20);
	/* Nobody else is held up. */
	send_text(&two, other.ends[0], other.ends[1], "meanwhile");
	send_text(&two, joined.ends[1], joined.ends[0], "against the stream");
	flow.len = flow.n_sent + (1u << 20);
	deadline = deadline_in(LIMIT);
	while (flow.n_received < flow.len) {
		assert_true(deadline_left(deadline) > 0);
		flow_send(&flow);
		flow_receive(&flow);
		move(&two);
	}
	finish(&two, &joined);
	finish(&two, &other);
}

static void test_many_connections_come_and_go(void **state)
{
	struct two two = start_guests(*state);

	for (uint32_t round = 0; round < 20; round++) {
		struct joined joined[20];

		for (uint32_t i = 0; i < 20; i++)
			joined[i] = join(&two, i % 2, PORT + i);
		for (uint32_t i = 0; i < 20; i++)
			send_text(&two, joined[i].ends[0], joined[i].ends[1], "hello");
		for (uint32_t i = 0; i < 20; i++)
			finish(&two, &joined[i]);
	}
}

/* ---- the end of one ---- */

static void kill_worker(struct setup *setup, size_t vm)
{
	assert_int_equal(daemon_kill(setup_worker(setup, vm), LIMIT), 0);
}

static void test_the_end_of_a_worker_resets_the_other_end(void **state)
{
	struct two two = start_guests(*state);

	for (size_t dies = 0; dies < 2; dies++) {
		struct joined joined = join(&two, 0, PORT);

		kill_worker(two.setup, dies);
		wait_reset(&two, joined.ends[0]);
		wait_reset(&two, joined.ends[1]);
		assert_int_equal(daemon_wait_log(&two.setup->daemon, "worker lost, 1", LIMIT), 0);
	}
}

/* Its worker sees the end of the socket before it may be told what end that was. */
static void test_a_guest_that_is_stopped_hears_of_a_reset_when_it_goes_on(void **state)
{
	struct two two = start_guests(*state);

	for (size_t dies = 0; dies < 2; dies++) {
		struct joined joined = join(&two, 0, PORT);
		size_t stops = 1 - dies;

		assert_int_equal(guest_stop(two.guests[stops]), 0);
		/* So that the first ring runs as soon as it starts. */
		assert_int_equal(guest_enable(two.guests[stops], true), 0);
		kill_worker(two.setup, dies);
		assert_int_equal(guest_wait_state(joined.ends[dies], GUEST_CLOSED, LIMIT), 0);
		assert_int_equal(guest_resume(two.guests[stops]), 0);
		wait_reset(&two, joined.ends[0]);
		wait_reset(&two, joined.ends[1]);
	}
}

static void test_a_request_to_a_guest_without_a_worker_waits_for_the_next(void **state)
{
	struct two two = start_guests(*state);

	(void)setup_worker(two.setup, 0);
	for (int i = 0; i < 3; i++) {
		struct joined joined;

		kill_worker(two.setup, 1);
		joined = join(&two, 0, PORT);
		finish(&two, &joined);
	}
}

static void test_a_device_that_is_reset_resets_the_other_end(void **state)
{
	struct two two = start_guests(*state);

	for (size_t i = 0; i < 2; i++) {
		struct joined joined = join(&two, 0, PORT);

		assert_int_equal(guest_reset(two.guests[i]), 0);
		assert_int_equal(joined.ends[i]->state, GUEST_CLOSED);
		assert_int_equal(guest_wait_state(joined.ends[1 - i], GUEST_CLOSED, LIMIT), 0);
		assert_int_equal(joined.ends[1 - i]->error, ECONNRESET);
		guest_forget(joined.ends[0]);
		guest_forget(joined.ends[1]);
		assert_int_equal(guest_resume(two.guests[i]), 0);
	}
}

static void test_a_vmm_that_leaves_resets_the_other_end(void **state)
{
	struct two two = start_guests(*state);

	for (size_t i = 0; i < 2; i++) {
		struct joined joined = join(&two, 0, PORT);
		struct guest_connection *other = joined.ends[1 - i];

		setup_end_guest(two.setup, i);
		assert_int_equal(guest_wait_state(other, GUEST_CLOSED, LIMIT), 0);
		assert_int_equal(other->error, ECONNRESET);
		guest_forget(other);
		two.guests[i] = setup_guest(two.setup, i, (struct guest_options){0});
	}
}

/* ---- one that cannot be asked now ---- */

static void test_a_guest_that_is_stopped_is_asked_when_it_goes_on(void **state)
{
	struct two two = start_guests(*state);
	struct guest_connection *connections[3];
	struct packet packet;
	uint32_t ports[2];

	assert_int_equal(guest_listen(two.guests[1], PORT), 0);
	assert_int_equal(guest_stop(two.guests[1]), 0);
	for (size_t i = 0; i < 3; i++)
		connections[i] = guest_connect(two.guests[0], setup_cid(1), PORT);
	assert_int_equal(guest_poll_for(two.guests[0], QUIET), 0);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(connections[i]->state, GUEST_CONNECTING);

	/* The one in the middle loses patience; the stopped guest never hears of it. */
	packet = guest_packet(connections[1], PACKET_RST);
	assert_int_equal(guest_send_packet(two.guests[0], &packet, NULL, 0, NULL), 0);
	setup_settle(two.setup);
	assert_int_equal(guest_resume(two.guests[1]), 0);
	wait_state(&two, connections[0], GUEST_ESTABLISHED);
	wait_state(&two, connections[2], GUEST_ESTABLISHED);
	/* Who is asked for first is open: its rings start one by one. */
	ports[0] = wait_accepted(&two, 1, PORT)->peer_port;
	ports[1] = wait_accepted(&two, 1, PORT)->peer_port;
	assert_true(ports[0] == connections[0]->port || ports[0] == connections[2]->port);
	assert_int_equal(ports[0] + ports[1], connections[0]->port + connections[2]->port);
	move_for(&two, QUIET);
	assert_null(guest_accept(two.guests[1], PORT));
	assert_int_equal(connections[1]->state, GUEST_CONNECTING);
}

static void test_what_waits_for_a_guest_is_refused_when_its_vmm_leaves(void **state)
{
	struct two two = start_guests(*state);
	struct guest_connection *connection;

	assert_int_equal(guest_stop(two.guests[1]), 0);
	connection = guest_connect(two.guests[0], setup_cid(1), PORT);
	assert_int_equal(guest_poll_for(two.guests[0], QUIET), 0);
	assert_int_equal(connection->state, GUEST_CONNECTING);
	setup_end_guest(two.setup, 1);
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
}

static void test_a_restored_guest_is_asked_when_it_has_handled_the_reset(void **state)
{
	struct setup *setup = *state;
	struct two two = {.setup = setup};
	struct guest_connection *connection;

	two.guests[0] = setup_guest(setup, 0, (struct guest_options){0});
	two.guests[1] = setup_guest(setup, 1,
				    (struct guest_options){
					    .style = GUEST_LIKE_CROSVM,
					    .holds_events = true,
				    });
	assert_int_equal(guest_listen(two.guests[1], PORT), 0);
	assert_int_equal(guest_stop(two.guests[1]), 0);
	guest_detach(two.guests[1]);
	/* A state of which nothing is known: the driver is to be reset. */
	assert_int_equal(guest_attach(two.guests[1], setup->sockets[1], "", 0), 0);
	assert_int_equal(guest_resume(two.guests[1]), 0);
	connection = guest_connect(two.guests[0], setup_cid(1), PORT);
	while (two.guests[1]->n_transport_resets == 0)
		move(&two);
	move_for(&two, QUIET);
	assert_int_equal(connection->state, GUEST_CONNECTING);
	assert_int_equal(guest_answer_events(two.guests[1]), 0);
	wait_state(&two, connection, GUEST_ESTABLISHED);
}

static void test_a_guest_has_so_many_requests_to_answer_and_no_more(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connections[3];
	struct packet request = {0};
	struct two two;

	setup_start(setup, 2, "max-handshakes=2", NULL);
	two = start_guests(setup);
	two.guests[1]->on_packet = swallow_response;
	two.guests[1]->on_packet_context = &request;
	for (size_t i = 0; i < 3; i++) {
		connections[i] = guest_connect(two.guests[0], setup_cid(1), PORT + (uint32_t)i);
		/* One after the other reaches the other guest, or is refused. */
		request.op = PACKET_INVALID;
		if (i < 2)
			wait_request(&two, &request);
	}
	wait_reset(&two, connections[2]);
	assert_int_equal(connections[0]->state, GUEST_CONNECTING);
	assert_int_equal(connections[1]->state, GUEST_CONNECTING);
	assert_int_equal(daemon_wait_log(&setup->daemon, "as many requests to answer", LIMIT), 0);
	/* In time it has not answered, and there is room again. */
	wait_reset(&two, connections[0]);
	wait_reset(&two, connections[1]);
	two.guests[1]->on_packet = NULL;
	{
		struct joined joined = join(&two, 0, PORT);

		finish(&two, &joined);
	}
	setup_stop(setup);
}

static int make_setup(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	return *state ? 0 : -1;
}

static int free_setup(void **state)
{
	free(*state);
	return 0;
}

#define TWO(name) cmocka_unit_test_setup_teardown(name, setup_start_two, setup_end)
#define OWN(name) cmocka_unit_test_setup_teardown(name, make_setup, free_setup)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TWO(test_guests_of_a_common_group_reach_each_other),
		TWO(test_who_is_not_there_is_refused_at_once),
		OWN(test_guests_without_a_common_group_do_not_meet),
		TWO(test_a_guest_that_does_not_listen_refuses),
		TWO(test_nobody_is_told_of_success_before_the_other_guest_accepts),
		TWO(test_a_guest_that_gives_up_takes_its_request_back),
		TWO(test_half_a_close_leaves_the_other_direction),
		TWO(test_a_reset_travels_behind_what_was_sent),
		TWO(test_bulk_in_both_directions_at_once_loses_no_byte),
		TWO(test_messages_between_guests_stay_whole),
		TWO(test_the_end_of_a_record_travels_between_guests),
		TWO(test_records_wait_for_a_slow_guest),
		TWO(test_a_guest_that_has_no_messages_refuses_them),
		TWO(test_a_slow_receiver_holds_the_sender_up_and_costs_little),
		TWO(test_many_connections_come_and_go),
		TWO(test_the_end_of_a_worker_resets_the_other_end),
		TWO(test_a_guest_that_is_stopped_hears_of_a_reset_when_it_goes_on),
		TWO(test_a_request_to_a_guest_without_a_worker_waits_for_the_next),
		TWO(test_a_device_that_is_reset_resets_the_other_end),
		TWO(test_a_vmm_that_leaves_resets_the_other_end),
		TWO(test_a_guest_that_is_stopped_is_asked_when_it_goes_on),
		TWO(test_what_waits_for_a_guest_is_refused_when_its_vmm_leaves),
		TWO(test_a_restored_guest_is_asked_when_it_has_handled_the_reset),
		OWN(test_a_guest_has_so_many_requests_to_answer_and_no_more),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
