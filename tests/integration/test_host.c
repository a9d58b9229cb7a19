/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Programs on the host: the CONNECT line in every shape, limits of time and of
 * number, programs that die at any moment, and listeners that are absent, full
 * or of the wrong kind.
 */

#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/stopwatch.h"
#include "tests/integration/setup.h"

#define KIB   1024u
#define LIMIT SETUP_LIMIT
#define PORT  1234u
#define LINE  "CONNECT 1234\n"

/* What happens at once, and not when some time limit has passed. */
#define AT_ONCE 1000

/* Long enough for whatever is on its way. */
#define QUIET 50

static int end(void **state)
{
	struct setup *setup = *state;

	assert_false(daemon_log_has(&setup->daemon, "worker lost"));
	return setup_end(state);
}

/* Milliseconds; a machine that is busy with something else may add to the larger number. */
static void check_took(struct setup *setup, const struct stopwatch *watch, int64_t at_least,
		       int64_t at_most)
{
	assert_true(stopwatch_elapsed(watch) >= at_least);
	assert_in_range(stopwatch_spent_daemon(watch, &setup->daemon), 0, at_most);
}

/* A program that has connected and said so many bytes. */
static void begin(struct setup *setup, struct host_stream *stream, const char *bytes, size_t len)
{
	int fd = socket_connect(setup->uds_paths[0], SOCK_STREAM, LIMIT);

	assert_true(fd >= 0);
	host_stream_init(stream, fd);
	guest_watch(&setup->guests[0], &stream->watch);
	assert_int_equal(host_write(fd, bytes, len, LIMIT), 0);
}

/* Until vsockd has read what the program wrote. */
static void wait_taken(struct setup *setup, const struct host_stream *stream)
{
	int64_t deadline = deadline_in(LIMIT);
	int n_waiting;

	do {
		assert_true(deadline_left(deadline) > 0);
		assert_true(guest_poll(&setup->guests[0], 1) >= 0);
		assert_int_equal(ioctl(stream->watch.fd, SIOCOUTQ, &n_waiting), 0);
	} while (n_waiting > 0);
}

/* The guest accepts at that port, the program reads OK and the right port. */
static struct guest_connection *accept_at(struct setup *setup, uint32_t port,
					  struct host_stream *stream)
{
	struct guest *guest = &setup->guests[0];
	struct guest_connection *connection = guest_accept_wait(guest, port, LIMIT);
	int64_t deadline = deadline_in(LIMIT);
	uint32_t host_port;
	int result;

	assert_non_null(connection);
	while ((result = host_stream_take_ok(stream, &host_port)) == 0)
		assert_true(guest_poll(guest, deadline_left(deadline)) > 0);
	assert_int_equal(result, 1);
	assert_int_equal(host_port, connection->peer_port);
	assert_in_range(host_port, UINT32_C(1) << 30, (UINT32_C(1) << 31) - 1);
	return connection;
}

static bool is_over(void *context)
{
	const struct host_stream *stream = context;

	return stream->is_ended || stream->error;
}

static void wait_over(struct setup *setup, struct host_stream *stream, int timeout)
{
	setup_wait_within(setup, &setup->guests[0], is_over, stream, timeout);
}

/* Sent away: the socket is closed within that time, without a word. */
static void check_sent_away(struct setup *setup, struct host_stream *stream, int timeout)
{
	wait_over(setup, stream, timeout);
	assert_int_equal(stream->n_received, 0);
	setup_end_stream(setup, 0, stream);
}

struct awaited {
	const struct host_stream *stream;
	size_t len;
};

static bool has_received(void *context)
{
	const struct awaited *awaited = context;

	return awaited->stream->n_received >= awaited->len;
}

/* A few bytes both ways: this connection lives. */
static void check_lives(struct setup *setup, struct guest_connection *connection,
			struct host_stream *stream)
{
	struct awaited awaited = {.stream = stream, .len = 5};
	char bytes[5];

	stream->n_received = 0;
	assert_int_equal(guest_send_all(connection, "hello", 5, LIMIT), 0);
	assert_int_equal(guest_wait_until(&setup->guests[0], has_received, &awaited, LIMIT), 0);
	assert_memory_equal(stream->received, "hello", 5);
	assert_int_equal(host_write(stream->watch.fd, "world", 5, LIMIT), 0);
	assert_int_equal(guest_receive_all(connection, bytes, 5, LIMIT), 5);
	assert_memory_equal(bytes, "world", 5);
}

static bool is_closed(void *context)
{
	return ((const struct guest_connection *)context)->state == GUEST_CLOSED;
}

static void check_refused_at_once(struct setup *setup, uint32_t port)
{
	struct guest *guest = &setup->guests[0];
	struct guest_connection *connection = guest_connect(guest, PACKET_HOST_CID, port);

	assert_non_null(connection);
	setup_wait_within(setup, guest, is_closed, connection, AT_ONCE);
	assert_int_equal(connection->error, ECONNRESET);
	guest_forget(connection);
}

static void finish(struct setup *setup, struct guest_connection *connection,
		   struct host_stream *stream)
{
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	wait_over(setup, stream, LIMIT);
	assert_int_equal(stream->error, 0);
	setup_end_stream(setup, 0, stream);
}

/* Until vsockd has no more fds than so many. */
static void wait_fds(struct setup *setup, int n_fds)
{
	int64_t deadline = deadline_in(LIMIT);

	while (daemon_count_fds(&setup->daemon) > n_fds) {
		if (deadline_left(deadline) == 0)
			fail_msg("%d fds instead of %d", daemon_count_fds(&setup->daemon), n_fds);
		assert_true(guest_poll(&setup->guests[0], 1) >= 0);
	}
}

static struct guest *start_guest(struct setup *setup)
{
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	assert_int_equal(guest_listen(guest, PORT), 0);
	return guest;
}

/* ---- the CONNECT line ---- */

static void test_the_connect_line_may_come_in_any_two_pieces(void **state)
{
	struct setup *setup = *state;

	start_guest(setup);
	for (size_t split = 0; split <= strlen(LINE); split++) {
		struct guest_connection *connection;
		struct host_stream stream;

		begin(setup, &stream, LINE, split);
		wait_taken(setup, &stream);
		assert_true(stream.n_received == 0 || split == strlen(LINE));
		assert_int_equal(
			host_write(stream.watch.fd, &LINE[split], strlen(LINE) - split, LIMIT), 0);
		connection = accept_at(setup, PORT, &stream);
		check_lives(setup, connection, &stream);
		finish(setup, connection, &stream);
	}
}

static void test_the_connect_line_may_come_byte_by_byte(void **state)
{
	struct setup *setup = *state;
	struct host_stream stream;

	start_guest(setup);
	begin(setup, &stream, "", 0);
	for (size_t i = 0; i < strlen(LINE); i++) {
		assert_int_equal(host_write(stream.watch.fd, &LINE[i], 1, LIMIT), 0);
		wait_taken(setup, &stream);
	}
	finish(setup, accept_at(setup, PORT, &stream), &stream);
}

static void test_the_connect_line_is_taken_in_any_case_for_any_port(void **state)
{
	static const struct {
		const char *line;
		uint32_t port;
	} cases[] = {
		{"connect 1234\n", 1234},
		{"Connect 1234\n", 1234},
		{"cOnNeCt 1234\r\n", 1234},
		{"CONNECT 0001234\n", 1234},
		{"CONNECT 0\n", 0},
		{"CONNECT 1\r\n", 1},
		{"CONNECT 4294967295\r\n", UINT32_MAX},
	};
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);

	assert_int_equal(guest_listen(guest, 0), 0);
	assert_int_equal(guest_listen(guest, 1), 0);
	assert_int_equal(guest_listen(guest, UINT32_MAX), 0);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct guest_connection *connection;
		struct host_stream stream;

		begin(setup, &stream, cases[i].line, strlen(cases[i].line));
		connection = accept_at(setup, cases[i].port, &stream);
		check_lives(setup, connection, &stream);
		finish(setup, connection, &stream);
	}
}

static void test_bytes_behind_the_connect_line_arrive_whole_and_first(void **state)
{
	static const size_t lens[] = {1, 18, 19, 20, 1000, 100000};
	static uint8_t bytes[100 + 100000], received[sizeof(bytes)];
	struct setup *setup = *state;

	start_guest(setup);
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		struct guest_connection *connection;
		struct host_stream stream;

		memcpy(bytes, LINE, strlen(LINE));
		pattern_fill(bytes + strlen(LINE), lens[i] + 50, i, 0);
		begin(setup, &stream, (const char *)bytes, strlen(LINE) + lens[i]);
		connection = accept_at(setup, PORT, &stream);
		assert_int_equal(
			host_write(stream.watch.fd, bytes + strlen(LINE) + lens[i], 50, LIMIT), 0);
		assert_int_equal(guest_receive_all(connection, received, lens[i] + 50, LIMIT),
				 lens[i] + 50);
		assert_true(pattern_is(received, lens[i] + 50, i, 0));
		finish(setup, connection, &stream);
	}
}

/* As "printf 'CONNECT 1234\nhello' | nc -N -U path" does. */
static void test_a_program_may_end_its_stream_right_behind_the_connect_line(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connection;
	struct host_stream stream;
	char bytes[10];

	start_guest(setup);
	begin(setup, &stream, LINE "hello", strlen(LINE) + 5);
	assert_int_equal(shutdown(stream.watch.fd, SHUT_WR), 0);
	connection = accept_at(setup, PORT, &stream);
	assert_int_equal(guest_receive_all(connection, bytes, 10, LIMIT), 5);
	assert_memory_equal(bytes, "hello", 5);
	assert_int_equal(guest_send_all(connection, "answer", 6, LIMIT), 0);
	assert_int_equal(guest_close(connection), 0);
	wait_over(setup, &stream, LIMIT);
	assert_int_equal(stream.n_received, 6);
	assert_memory_equal(stream.received, "answer", 6);
	setup_end_stream(setup, 0, &stream);
}

static void test_a_malformed_connect_line_is_closed_without_a_word(void **state)
{
	static const char *const lines[] = {
		"\n",
		"CONNECT\n",
		"CONNECT \n",
		"CONNECT x\n",
		"CONNECT -1\n",
		"CONNECT +1\n",
		"CONNECT  1234\n",
		"CONNECT 1234 \n",
		"CONNECT 1234\r\r\n",
		"CONNECT 1234\rx\n",
		"CONNECT 0x10\n",
		"CONNECT 4294967296\n",
		"CONNECT 99999999999999999999\n",
		"CONNECT 000000000000000000000001234\n",
		"CONNEC 1234\n",
		" CONNECT 1234\n",
		"GET / HTTP/1.1\r\n",
		"CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC",
		"CONNECT 11111111111111111111111111111111111111",
	};
	struct setup *setup = *state;
	struct host_stream stream;
	int n_fds;

	start_guest(setup);
	n_fds = setup_count_fds(setup);
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		begin(setup, &stream, lines[i], strlen(lines[i]));
		check_sent_away(setup, &stream, AT_ONCE);
	}
	begin(setup, &stream, "CONNECT 1\0002\n", 12);
	check_sent_away(setup, &stream, AT_ONCE);
	wait_fds(setup, n_fds);
	begin(setup, &stream, LINE, strlen(LINE));
	finish(setup, accept_at(setup, PORT, &stream), &stream);
}

static void test_a_program_may_die_at_every_byte_of_the_connect_line(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	int n_fds = setup_count_fds(setup);
	struct guest_connection *connection;
	struct host_stream stream;

	for (size_t i = 0; i <= 2 * strlen(LINE) + 1; i++) {
		begin(setup, &stream, LINE, i / 2);
		if (i % 2)
			wait_taken(setup, &stream);
		setup_end_stream(setup, 0, &stream);
	}
	/* Half of a close: nothing more of the line will come. */
	begin(setup, &stream, LINE, 5);
	assert_int_equal(shutdown(stream.watch.fd, SHUT_WR), 0);
	check_sent_away(setup, &stream, AT_ONCE);
	wait_fds(setup, n_fds);

	/* Those that the guest heard of were ended there as well. */
	while ((connection = guest_accept(guest, PORT)))
		assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	begin(setup, &stream, LINE, strlen(LINE));
	finish(setup, accept_at(setup, PORT, &stream), &stream);
}

static void test_ports_of_host_programs_differ(void **state)
{
	enum { N = 64 };
	struct setup *setup = *state;
	struct guest_connection *connections[N];
	struct host_stream streams[N];

	start_guest(setup);
	for (size_t i = 0; i < N; i++) {
		begin(setup, &streams[i], LINE, strlen(LINE));
		connections[i] = accept_at(setup, PORT, &streams[i]);
		for (size_t j = 0; j < i; j++)
			assert_int_not_equal(connections[i]->peer_port, connections[j]->peer_port);
	}
	/* One that ends takes no other's port with it. */
	finish(setup, connections[0], &streams[0]);
	begin(setup, &streams[0], LINE, strlen(LINE));
	connections[0] = accept_at(setup, PORT, &streams[0]);
	for (size_t i = 0; i < N; i++)
		check_lives(setup, connections[i], &streams[i]);
	for (size_t i = 0; i < N; i++)
		finish(setup, connections[i], &streams[i]);
}

/* ---- limits ---- */

static void test_a_connect_line_has_five_seconds_and_holds_up_nobody(void **state)
{
	struct setup *setup = *state;
	struct host_stream silent, slow, stream;
	struct guest_connection *connection;
	struct stopwatch watch;
	size_t n_said = 1;

	stopwatch_start_daemon(&watch, &setup->daemon);
	start_guest(setup);
	begin(setup, &silent, "", 0);
	begin(setup, &slow, LINE, n_said);
	begin(setup, &stream, LINE, strlen(LINE));
	connection = accept_at(setup, PORT, &stream);
	while (!is_over(&slow)) {
		check_took(setup, &watch, 0, 7000);
		check_lives(setup, connection, &stream);
		/* A byte now and then wins no time. */
		if (stopwatch_elapsed(&watch) > (int64_t)n_said * 700 && !is_over(&slow))
			send(slow.watch.fd, &LINE[n_said++], 1, MSG_NOSIGNAL);
		assert_int_equal(guest_poll_for(&setup->guests[0], 10), 0);
	}
	check_took(setup, &watch, 4900, 7000);
	check_sent_away(setup, &silent, AT_ONCE);
	assert_int_equal(slow.n_received, 0);
	setup_end_stream(setup, 0, &slow);
	assert_int_equal(daemon_wait_log(&setup->daemon, "no complete line in 5 s", LIMIT), 0);
	finish(setup, connection, &stream);
}

static int start_with_8_handshakes(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	setup_start(*state, 1, "max-handshakes=8", NULL);
	return 0;
}

static void test_handshakes_beyond_the_limit_are_closed_and_the_others_go_on(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connections[8];
	struct host_stream streams[8], stream;

	start_guest(setup);
	for (size_t i = 0; i < 8; i++)
		begin(setup, &streams[i], "CONN", 4);
	for (size_t i = 0; i < 8; i++)
		wait_taken(setup, &streams[i]);
	for (size_t i = 0; i < 3; i++) {
		begin(setup, &stream, "", 0);
		check_sent_away(setup, &stream, AT_ONCE);
	}
	assert_int_equal(daemon_wait_log(&setup->daemon, "8 handshakes are open", LIMIT), 0);
	/* What has finished its handshake does not count. */
	for (size_t i = 0; i < 8; i++) {
		assert_int_equal(host_write(streams[i].watch.fd, "ECT 1234\n", 9, LIMIT), 0);
		connections[i] = accept_at(setup, PORT, &streams[i]);
	}
	begin(setup, &stream, LINE, strlen(LINE));
	finish(setup, accept_at(setup, PORT, &stream), &stream);
	for (size_t i = 0; i < 8; i++)
		finish(setup, connections[i], &streams[i]);
}

static int start_with_8_connections(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	setup_start(*state, 1, "max-connections=8", NULL);
	return 0;
}

static void test_connections_beyond_the_limit_are_refused_and_the_others_go_on(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connections[8];
	struct host_stream streams[8], stream;
	int listener, n_fds;

	start_guest(setup);
	for (uint32_t i = 0; i < 8; i++) {
		if (i % 2) {
			connections[i] = setup_connect(setup, 0, 2000 + i, &streams[i]);
			continue;
		}
		begin(setup, &streams[i], LINE, strlen(LINE));
		connections[i] = accept_at(setup, PORT, &streams[i]);
	}
	listener = host_listen(setup->uds_paths[0], 3000);
	assert_true(listener >= 0);
	for (size_t i = 0; i < 3; i++) {
		check_refused_at_once(setup, 3000);
		begin(setup, &stream, "", 0);
		check_sent_away(setup, &stream, AT_ONCE);
	}
	close(listener);
	for (size_t i = 0; i < 8; i++)
		check_lives(setup, connections[i], &streams[i]);
	/* One leaves, one may come: either way. */
	finish(setup, connections[0], &streams[0]);
	connections[0] = setup_connect(setup, 0, 3001, &streams[0]);
	n_fds = setup_count_fds(setup);
	finish(setup, connections[1], &streams[1]);
	/* The program sees its end before the front hears of it: two fds, one in each process. */
	wait_fds(setup, n_fds - 2);
	begin(setup, &streams[1], LINE, strlen(LINE));
	connections[1] = accept_at(setup, PORT, &streams[1]);
	for (size_t i = 0; i < 8; i++) {
		check_lives(setup, connections[i], &streams[i]);
		finish(setup, connections[i], &streams[i]);
	}
}

/* The worker asks before it has heard of the programs that were first. */
static void test_a_guest_that_asks_as_the_last_place_goes_is_refused(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct guest_connection *connections[8], *late;
	struct host_stream streams[8];
	pid_t pids[DAEMON_PIDS_MAX];

	for (size_t i = 0; i < 7; i++) {
		begin(setup, &streams[i], LINE, strlen(LINE));
		connections[i] = accept_at(setup, PORT, &streams[i]);
	}
	/* Asleep the front has nothing left to look at: later it sees first what came first. */
	setup_count_fds(setup);
	assert_true(daemon_pids(&setup->daemon, pids) >= 3);
	assert_int_equal(kill(pids[1], SIGSTOP), 0);
	begin(setup, &streams[7], LINE, strlen(LINE));
	late = guest_connect(guest, PACKET_HOST_CID, 3000);
	assert_non_null(late);
	while (guest->rings[GUEST_TX].n_in_flight > 0)
		assert_true(guest_poll(guest, LIMIT) > 0);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_int_equal(kill(pids[1], SIGCONT), 0);
	connections[7] = accept_at(setup, PORT, &streams[7]);
	assert_int_equal(guest_wait_state(late, GUEST_CLOSED, LIMIT), 0);
	guest_forget(late);
	for (size_t i = 0; i < 8; i++) {
		check_lives(setup, connections[i], &streams[i]);
		finish(setup, connections[i], &streams[i]);
	}
}

/* ---- what the guest says to it, or does not ---- */

static void test_a_connection_that_the_guest_refuses_is_closed_at_once(void **state)
{
	struct setup *setup = *state;
	struct host_stream stream;

	start_guest(setup);
	begin(setup, &stream, "CONNECT 99\nhello", 16);
	check_sent_away(setup, &stream, AT_ONCE);
	assert_int_equal(daemon_wait_log(&setup->daemon, "port 99: the guest refused", LIMIT), 0);
}

struct mute {
	uint32_t n_request, n_rst, port;
};

/* A guest that looks at no REQUEST. */
static bool ignore_requests(void *context, const struct packet *packet, const struct iovec *payload,
			    size_t n_payload)
{
	struct mute *mute = context;

	(void)payload;
	(void)n_payload;
	if (packet->dst_port != PORT)
		return false;
	mute->n_request += packet->op == PACKET_REQUEST;
	mute->n_rst += packet->op == PACKET_RST && packet->src_port == mute->port;
	if (packet->op == PACKET_REQUEST)
		mute->port = packet->src_port;
	return true;
}

static bool has_rst(void *context)
{
	return ((const struct mute *)context)->n_rst > 0;
}

static void test_a_guest_has_two_seconds_to_answer(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct mute mute = {0};
	struct host_stream stream;
	struct stopwatch watch;

	guest->on_packet = ignore_requests;
	guest->on_packet_context = &mute;
	stopwatch_start_daemon(&watch, &setup->daemon);
	begin(setup, &stream, LINE, strlen(LINE));
	wait_over(setup, &stream, 4000);
	check_took(setup, &watch, 1900, 4000);
	check_sent_away(setup, &stream, AT_ONCE);
	assert_int_equal(guest_wait_until(guest, has_rst, &mute, LIMIT), 0);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_int_equal(mute.n_request, 1);
	assert_int_equal(mute.n_rst, 1);
	assert_int_equal(daemon_wait_log(&setup->daemon, "no answer of the guest in 2 s", LIMIT),
			 0);
	guest->on_packet = NULL;
	begin(setup, &stream, LINE, strlen(LINE));
	finish(setup, accept_at(setup, PORT, &stream), &stream);
}

static void check_no_driver(struct setup *setup)
{
	int fd = socket_connect(setup->uds_paths[0], SOCK_STREAM, LIMIT);
	struct stopwatch watch;
	int result;

	stopwatch_start_daemon(&watch, &setup->daemon);
	assert_true(fd >= 0);
	/* It may be closed before it is said, and bytes that were not read make it a reset. */
	result = host_write(fd, LINE, strlen(LINE), LIMIT);
	assert_true(result == 0 || result == -EPIPE || result == -ECONNRESET);
	result = host_wait_end(fd, LIMIT);
	assert_true(result == 0 || result == -ECONNRESET);
	check_took(setup, &watch, 0, AT_ONCE);
	close(fd);
}

static void test_without_a_driver_programs_are_sent_away_and_the_log_says_why(void **state)
{
	struct setup *setup = *state;
	struct guest *guest;
	struct host_stream stream;

	check_no_driver(setup);
	assert_int_equal(daemon_wait_log(&setup->daemon,
					 "host program refused: the guest has no driver", LIMIT),
			 0);
	guest = start_guest(setup);
	begin(setup, &stream, LINE, strlen(LINE));
	finish(setup, accept_at(setup, PORT, &stream), &stream);
	/* Firmware, or a kernel that boots: the VMM is there, the driver not yet. */
	assert_int_equal(guest_reset(guest), 0);
	check_no_driver(setup);
	assert_int_equal(guest_resume(guest), 0);
	begin(setup, &stream, LINE, strlen(LINE));
	finish(setup, accept_at(setup, PORT, &stream), &stream);
	setup_end_guest(setup, 0);
	check_no_driver(setup);
}

#define WAITING 6

/* One each with nothing said, and in the midst of its line; the others say all while it is paused.
 */
static void begin_while_paused(struct setup *setup, struct host_stream *streams, int way)
{
	static const char said[] = LINE "early";
	struct guest *guest = &setup->guests[0];
	struct host_stream gone;

	begin(setup, &streams[0], said, 0);
	begin(setup, &streams[1], said, 3);
	wait_taken(setup, &streams[1]);
	assert_int_equal(way < 3 ? guest_stop(guest) : guest_enable(guest, false), 0);
	for (size_t i = 2; i < WAITING; i++)
		begin(setup, &streams[i], said, strlen(said));
	assert_int_equal(host_write(streams[0].watch.fd, said, strlen(said), LIMIT), 0);
	assert_int_equal(host_write(streams[1].watch.fd, said + 3, strlen(said) - 3, LIMIT), 0);
	begin(setup, &gone, LINE, strlen(LINE));
	setup_end_stream(setup, 0, &gone);
	assert_int_equal(guest_poll_for(guest, 2 * QUIET), 0);
	for (size_t i = 0; i < WAITING; i++)
		assert_false(is_over(&streams[i]) || streams[i].n_received > 0);
}

/* All were accepted, and what they said early is there. */
static void check_served(struct setup *setup, struct host_stream *streams)
{
	struct guest *guest = &setup->guests[0];
	int64_t deadline = deadline_in(LIMIT);

	for (size_t i = 0; i < WAITING; i++) {
		uint32_t port;

		while (host_stream_take_ok(&streams[i], &port) == 0)
			assert_true(guest_poll(guest, deadline_left(deadline)) > 0);
		assert_false(is_over(&streams[i]));
	}
	for (size_t n = 0; n < WAITING;) {
		struct guest_connection *connection = guest_accept_wait(guest, PORT, LIMIT);
		char bytes[5];

		assert_non_null(connection);
		/* The one that did not wait may have been asked for, too. */
		if (guest_receive_all(connection, bytes, 5, LIMIT) != 5)
			continue;
		assert_memory_equal(bytes, "early", 5);
		n++;
	}
}

static void test_while_the_rings_are_stopped_programs_wait_and_lose_nothing(void **state)
{
	struct setup *setup = *state;

	/* Stopped as each VMM does it, and only disabled. */
	for (int way = 0; way < 4; way++) {
		enum guest_style style = way < 3 ? (enum guest_style)way : GUEST_LIKE_QEMU;
		struct guest *guest = setup_guest(setup, 0, (struct guest_options){.style = style});
		struct host_stream streams[WAITING];

		assert_int_equal(guest_listen(guest, PORT), 0);
		/* crosvm's messages are not acknowledged: behind this one the rings run. */
		assert_int_equal(guest_enable(guest, true), 0);
		begin_while_paused(setup, streams, way);
		assert_int_equal(way < 3 ? guest_resume(guest) : guest_enable(guest, true), 0);
		check_served(setup, streams);
		for (size_t i = 0; i < WAITING; i++)
			setup_end_stream(setup, 0, &streams[i]);
		setup_end_guest(setup, 0);
	}
}

/* ---- listeners of host programs ---- */

static void test_what_is_no_stream_listener_refuses_at_once(void **state)
{
	struct setup *setup = *state;
	char path[128];
	int n_fds, fd;
	FILE *file;

	start_guest(setup);
	n_fds = setup_count_fds(setup);
	check_refused_at_once(setup, 10); /* absent */

	fd = host_listen(setup->uds_paths[0], 11);
	close(fd);
	check_refused_at_once(setup, 11); /* nobody listens any more */

	snprintf(path, sizeof(path), "%s_12", setup->uds_paths[0]);
	file = fopen(path, "w");
	assert_non_null(file);
	fclose(file);
	check_refused_at_once(setup, 12); /* a file */

	snprintf(path, sizeof(path), "%s_13", setup->uds_paths[0]);
	fd = socket_listen(path, SOCK_SEQPACKET);
	assert_true(fd >= 0);
	check_refused_at_once(setup, 13);
	close(fd);
	wait_fds(setup, n_fds);
}

#define CROWD 20

static void test_a_full_backlog_is_waited_for_and_all_get_through(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct guest_connection *connections[CROWD];
	int listener = host_listen(setup->uds_paths[0], PORT);
	bool is_seen[CROWD] = {false};
	int fds[CROWD];

	assert_true(listener >= 0);
	assert_int_equal(listen(listener, 1), 0);
	for (size_t i = 0; i < CROWD; i++) {
		connections[i] = guest_connect(guest, PACKET_HOST_CID, PORT);
		assert_non_null(connections[i]);
	}
	assert_int_equal(guest_poll_for(guest, 2 * QUIET), 0);
	for (size_t i = 0; i < CROWD; i++) {
		/* One after the other, then all that are left: in two seconds they are refused. */
		if (i == CROWD / 4)
			assert_int_equal(listen(listener, CROWD), 0);
		fds[i] = host_accept(listener, LIMIT);
		assert_true(fds[i] >= 0);
	}
	for (size_t i = 0; i < CROWD; i++) {
		uint8_t number = (uint8_t)i;

		assert_int_equal(guest_wait_state(connections[i], GUEST_ESTABLISHED, LIMIT), 0);
		assert_int_equal(guest_send_all(connections[i], &number, 1, LIMIT), 0);
	}
	for (size_t i = 0; i < CROWD; i++) {
		uint8_t number;

		assert_int_equal(host_read(fds[i], &number, 1, LIMIT), 0);
		assert_in_range(number, 0, CROWD - 1);
		assert_false(is_seen[number]);
		is_seen[number] = true;
	}
	for (size_t i = 0; i < CROWD; i++) {
		assert_int_equal(guest_finish(connections[i], LIMIT), 0);
		close(fds[i]);
	}
	close(listener);
}

static bool are_closed(void *context)
{
	struct guest_connection *const *connections = context;
	bool result = true;

	for (size_t i = 0; i < CROWD; i++)
		result &= connections[i]->state == GUEST_CLOSED;
	return result;
}

static void test_a_backlog_that_nobody_serves_refuses_after_two_seconds(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct guest_connection *first, *alive, *connections[CROWD];
	int listener = host_listen(setup->uds_paths[0], PORT);
	struct host_stream stream;
	struct stopwatch watch;

	alive = setup_connect(setup, 0, 2000, &stream);
	assert_true(listener >= 0);
	assert_int_equal(listen(listener, 0), 0);
	first = guest_connect_wait(guest, PACKET_HOST_CID, PORT, LIMIT);
	assert_non_null(first);
	stopwatch_start_daemon(&watch, &setup->daemon);
	for (size_t i = 0; i < CROWD; i++)
		connections[i] = guest_connect(guest, PACKET_HOST_CID, PORT);
	/* Nothing else is held up by it. */
	for (int i = 0; i < 50; i++)
		check_lives(setup, alive, &stream);
	check_refused_at_once(setup, 9);
	check_took(setup, &watch, 0, AT_ONCE);
	assert_int_equal(guest_wait_until(guest, are_closed, connections, LIMIT), 0);
	check_took(setup, &watch, 1800, 4000);
	for (size_t i = 0; i < CROWD; i++)
		assert_int_equal(connections[i]->error, ECONNRESET);
	assert_int_equal(guest_finish(first, LIMIT), 0);
	finish(setup, alive, &stream);
	close(listener);
}

struct heard {
	uint32_t port, n_packets, n_rst;
};

static bool hear(void *context, const struct packet *packet, const struct iovec *payload,
		 size_t n_payload)
{
	struct heard *heard = context;

	(void)payload;
	(void)n_payload;
	if (packet->dst_port != heard->port)
		return false;
	heard->n_packets++;
	heard->n_rst += packet->op == PACKET_RST;
	return false;
}

static bool is_told(void *context)
{
	return ((const struct heard *)context)->n_rst > 0;
}

static void test_a_guest_may_give_up_while_it_is_being_connected(void **state)
{
	static const enum packet_op ops[] = {PACKET_RST, PACKET_SHUTDOWN};
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	int n_fds = setup_count_fds(setup), fd;

	for (uint32_t i = 0; i < 2; i++) {
		int listener = host_listen(setup->uds_paths[0], PORT + i);
		struct guest_connection *first, *second;
		struct heard heard = {0};
		struct packet packet;

		assert_true(listener >= 0);
		assert_int_equal(listen(listener, 0), 0);
		first = guest_connect_wait(guest, PACKET_HOST_CID, PORT + i, LIMIT);
		assert_non_null(first);
		second = guest_connect(guest, PACKET_HOST_CID, PORT + i);
		assert_int_equal(guest_poll_for(guest, QUIET), 0);
		assert_int_equal(second->state, GUEST_CONNECTING);
		heard.port = second->port;
		guest->on_packet = hear;
		guest->on_packet_context = &heard;
		packet = guest_packet(second, ops[i]);
		packet.flags = ops[i] == PACKET_SHUTDOWN ? PACKET_SHUTDOWN_BOTH : 0;
		assert_int_equal(guest_send_packet(guest, &packet, NULL, 0, NULL), 0);
		/* A RST is the last word; who says goodbye is told that it is over. */
		if (ops[i] == PACKET_SHUTDOWN)
			assert_int_equal(guest_wait_until(guest, is_told, &heard, LIMIT), 0);
		assert_int_equal(guest_poll_for(guest, QUIET), 0);
		assert_int_equal(heard.n_packets, ops[i] == PACKET_SHUTDOWN);
		assert_int_equal(heard.n_rst, ops[i] == PACKET_SHUTDOWN);

		fd = host_accept(listener, LIMIT);
		assert_true(fd >= 0);
		assert_int_equal(guest_finish(first, LIMIT), 0);
		assert_int_equal(host_wait_end(fd, LIMIT), 0);
		close(fd);
		/* What was connected for nobody, if it was, is ended again. */
		fd = host_accept(listener, 4 * QUIET);
		if (fd >= 0)
			assert_int_equal(host_wait_end(fd, LIMIT), 0);
		close(fd);
		close(listener);
		assert_int_equal(guest_poll_for(guest, QUIET), 0);
		assert_int_equal(heard.n_packets, ops[i] == PACKET_SHUTDOWN);
		guest->on_packet = NULL;
		guest_forget(second);
		wait_fds(setup, n_fds);
	}
}

/* ---- programs that behave oddly ---- */

static void test_what_a_server_says_first_comes_behind_the_response(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	int listener = host_listen(setup->uds_paths[0], PORT);

	assert_true(listener >= 0);
	for (int i = 0; i < 20; i++) {
		struct guest_connection *connection = guest_connect(guest, PACKET_HOST_CID, PORT);
		char bytes[100];
		int fd = host_accept(listener, LIMIT);

		assert_true(fd >= 0);
		assert_int_equal(host_write(fd, "220 welcome", 11, LIMIT), 0);
		if (i % 2)
			close(fd);
		assert_int_equal(guest_wait_state(connection, GUEST_ESTABLISHED, LIMIT), 0);
		assert_int_equal(guest_receive_all(connection, bytes, i % 2 ? 100 : 11, LIMIT), 11);
		assert_memory_equal(bytes, "220 welcome", 11);
		assert_int_equal(guest_finish(connection, LIMIT), 0);
		if (i % 2 == 0)
			close(fd);
	}
	close(listener);
}

/* Some bytes, with so many copies of an fd. */
static void send_fds(int socket, const char *bytes, size_t len, size_t n_fds)
{
	union {
		char bytes[CMSG_SPACE(16 * sizeof(int))];
		struct cmsghdr alignment;
	} control = {{0}};
	struct iovec part = {.iov_base = (char *)(uintptr_t)bytes, .iov_len = len};
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = CMSG_SPACE(n_fds * sizeof(int)),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
	for (size_t i = 0; i < n_fds; i++)
		memcpy(CMSG_DATA(header) + i * sizeof(int), &(int){STDERR_FILENO}, sizeof(int));
	assert_int_equal(sendmsg(socket, &message, MSG_NOSIGNAL), len);
}

static void test_fds_that_a_program_pushes_are_dropped_and_its_bytes_arrive(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connection, *other;
	struct host_stream stream, pushed;
	int n_fds;
	char bytes[50];

	start_guest(setup);
	other = setup_connect(setup, 0, 2000, &stream);
	begin(setup, &pushed, "", 0);
	wait_taken(setup, &pushed);
	n_fds = setup_count_fds(setup);
	send_fds(pushed.watch.fd, LINE, strlen(LINE), 16);
	connection = accept_at(setup, PORT, &pushed);
	for (int i = 0; i < 5; i++) {
		send_fds(pushed.watch.fd, "0123456789", 10, 10);
		send_fds(stream.watch.fd, "abcdefghij", 10, 1);
	}
	assert_int_equal(guest_receive_all(connection, bytes, 50, LIMIT), 50);
	assert_memory_equal(bytes + 40, "0123456789", 10);
	assert_int_equal(guest_receive_all(other, bytes, 50, LIMIT), 50);
	assert_memory_equal(bytes + 40, "abcdefghij", 10);
	if (!setup->replacer) /* a successor is there at times, with fds of its own */
		assert_int_equal(setup_count_fds(setup), n_fds);
	finish(setup, connection, &pushed);
	finish(setup, other, &stream);
}

static bool is_left(void *context)
{
	const struct guest_connection *connection = context;

	return connection->state == GUEST_CLOSED ||
	       connection->peer_shutdown == PACKET_SHUTDOWN_BOTH;
}

static bool is_left_while_sending(void *context)
{
	static const uint8_t bytes[64 * KIB];

	guest_send(context, bytes, sizeof(bytes));
	return is_left(context);
}

static void test_a_program_that_leaves_bytes_unread_ends_the_guests_connection(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	int n_fds = setup_count_fds(setup);

	for (int is_sending = 0; is_sending < 2; is_sending++) {
		struct guest_connection *connection;
		struct host_stream stream;

		connection = setup_connect(setup, 0, 2000, &stream);
		host_stream_pause(&stream, true);
		assert_int_equal(guest_send_all(connection, "hello", 5, LIMIT), 0);
		assert_int_equal(socket_wait(stream.watch.fd, POLLIN, deadline_in(LIMIT)), 0);
		setup_end_stream(setup, 0, &stream);
		setup_wait_within(setup, guest, is_sending ? is_left_while_sending : is_left,
				  connection, AT_ONCE);
		assert_int_equal(guest_finish(connection, LIMIT), 0);
		wait_fds(setup, n_fds);
	}
}

static void test_a_program_that_reads_no_more_may_still_send(void **state)
{
	static uint8_t bytes[100 * KIB], received[100 * KIB];
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct guest_connection *connection;
	struct host_stream stream;

	(void)guest;
	connection = setup_connect(setup, 0, 2000, &stream);
	host_stream_pause(&stream, true);
	assert_int_equal(shutdown(stream.watch.fd, SHUT_RD), 0);
	pattern_fill(bytes, sizeof(bytes), 5, 0);
	assert_int_equal(guest_send_all(connection, bytes, 10, LIMIT), 0);
	assert_int_equal(host_write(stream.watch.fd, bytes, sizeof(bytes), LIMIT), 0);
	assert_int_equal(guest_receive_all(connection, received, sizeof(received), LIMIT),
			 sizeof(received));
	assert_memory_equal(received, bytes, sizeof(bytes));
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

#define WITH_SETUP(test) cmocka_unit_test_setup_teardown(test, setup_start_one, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_SETUP(test_the_connect_line_may_come_in_any_two_pieces),
		WITH_SETUP(test_the_connect_line_may_come_byte_by_byte),
		WITH_SETUP(test_the_connect_line_is_taken_in_any_case_for_any_port),
		WITH_SETUP(test_bytes_behind_the_connect_line_arrive_whole_and_first),
		WITH_SETUP(test_a_program_may_end_its_stream_right_behind_the_connect_line),
		WITH_SETUP(test_a_malformed_connect_line_is_closed_without_a_word),
		WITH_SETUP(test_a_program_may_die_at_every_byte_of_the_connect_line),
		WITH_SETUP(test_ports_of_host_programs_differ),
		WITH_SETUP(test_a_connect_line_has_five_seconds_and_holds_up_nobody),
		cmocka_unit_test_setup_teardown(
			test_handshakes_beyond_the_limit_are_closed_and_the_others_go_on,
			start_with_8_handshakes, end),
		cmocka_unit_test_setup_teardown(
			test_connections_beyond_the_limit_are_refused_and_the_others_go_on,
			start_with_8_connections, end),
		cmocka_unit_test_setup_teardown(
			test_a_guest_that_asks_as_the_last_place_goes_is_refused,
			start_with_8_connections, end),
		WITH_SETUP(test_a_connection_that_the_guest_refuses_is_closed_at_once),
		WITH_SETUP(test_a_guest_has_two_seconds_to_answer),
		WITH_SETUP(test_without_a_driver_programs_are_sent_away_and_the_log_says_why),
		WITH_SETUP(test_while_the_rings_are_stopped_programs_wait_and_lose_nothing),
		WITH_SETUP(test_what_is_no_stream_listener_refuses_at_once),
		WITH_SETUP(test_a_full_backlog_is_waited_for_and_all_get_through),
		WITH_SETUP(test_a_backlog_that_nobody_serves_refuses_after_two_seconds),
		WITH_SETUP(test_a_guest_may_give_up_while_it_is_being_connected),
		WITH_SETUP(test_what_a_server_says_first_comes_behind_the_response),
		WITH_SETUP(test_fds_that_a_program_pushes_are_dropped_and_its_bytes_arrive),
		WITH_SETUP(test_a_program_that_leaves_bytes_unread_ends_the_guests_connection),
		WITH_SETUP(test_a_program_that_reads_no_more_may_still_send),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
