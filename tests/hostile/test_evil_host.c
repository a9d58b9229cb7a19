/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Programs on the host that misbehave at the uds-path, and as peers of a guest,
 * while both that guest's other connections and the other VM go on.
 */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"
#include "tests/hostile/rig.h"

#define HANDSHAKES 512 /* the default of --max-handshakes */
#define ECHO_PORT  6000
#define GUEST_PORT 1234

static struct rig rig;
static struct guest guest;
static struct guest_connection *echo;
static struct host_stream echo_host;
static uint64_t n_echoed;

static int set_up(void **state)
{
	const struct guest_options options = {.socket = rig.socket, .timeout = RIG_LIMIT};
	int listener;

	(void)state;
	/* Room for all handshakes at once, and for as many besides. */
	rig_start(&rig, "max-connections=1024");
	assert_int_equal(guest_start(&guest, &options), 0);
	assert_int_equal(guest_listen(&guest, GUEST_PORT), 0);
	listener = host_listen(rig.uds_path, ECHO_PORT);
	echo = guest_connect_wait(&guest, PACKET_HOST_CID, ECHO_PORT, RIG_LIMIT);
	assert_non_null(echo);
	host_stream_init(&echo_host, host_accept(listener, RIG_LIMIT));
	guest_watch(&guest, &echo_host.watch);
	close(listener);
	n_echoed = 0;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	assert_string_equal(guest_violations(&guest), "");
	guest_unwatch(&guest, &echo_host.watch);
	host_stream_end(&echo_host);
	guest_end(&guest);
	rig_stop(&rig);
	return 0;
}

static bool has_arrived(void *context)
{
	return echo_host.n_received >= *(const uint64_t *)context;
}

/* The attacked guest's own connection carries bytes both ways. */
static void expect_echo(const char *what)
{
	uint8_t sent[100], received[100];
	uint64_t until = n_echoed + sizeof(sent);

	pattern_fill(sent, sizeof(sent), 7, n_echoed);
	if (guest_send_all(echo, sent, sizeof(sent), RIG_LIMIT) != 0 ||
	    guest_wait_until(&guest, has_arrived, &until, RIG_LIMIT) != 0)
		fail_msg("%s: the guest cannot send", what);
	host_stream_send(&echo_host, echo_host.received + n_echoed, sizeof(sent), false);
	if (guest_receive_all(echo, received, sizeof(received), RIG_LIMIT) != sizeof(received) ||
	    !pattern_is(received, sizeof(received), 7, n_echoed))
		fail_msg("%s: the echo is not what was sent", what);
	n_echoed = until;
	rig_check_neighbour(&rig, 1, what);
}

static bool is_ended(int fd)
{
	struct pollfd socket = {.fd = fd, .events = POLLIN};

	return poll(&socket, 1, 0) == 1;
}

/* A watch is there to wake the guest; it is looked at once. */
static void end_seen(struct watch *watch, short events)
{
	(void)events;
	watch->events = 0;
}

static bool has_been_seen(void *context)
{
	return ((const struct watch *)context)->events == 0;
}

/* Closed without a word. */
static void expect_end(int fd, const char *what)
{
	struct watch watch = {.fd = fd, .events = POLLIN, .ready = end_seen};
	char byte;

	guest_watch(&guest, &watch);
	if (guest_wait_until(&guest, has_been_seen, &watch, RIG_LIMIT) != 0)
		fail_msg("%s: no end", what);
	guest_unwatch(&guest, &watch);
	/* Closing with bytes unread shows as a reset. */
	if (recv(fd, &byte, 1, MSG_DONTWAIT) > 0)
		fail_msg("%s: an answer", what);
	close(fd);
}

static void send_some(int fd, const void *bytes, size_t len)
{
	/* It may be closed before all of it is sent. */
	(void)!send(fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* ---- the handshake ---- */

static void test_a_line_may_come_byte_by_byte_and_with_fds_that_nobody_gets(void **state)
{
	static const char line[] = "CONNECT 1234\n";
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n_pids = daemon_pids(&rig.daemon, pids);
	int n_fds[DAEMON_PIDS_MAX], pushed = eventfd(0, EFD_CLOEXEC),
				    fd = rig_connect(rig.uds_path);
	struct guest_connection *connection;
	struct host_stream stream;
	uint32_t port;

	(void)state;
	expect_echo("before");
	for (size_t i = 0; i < n_pids; i++)
		n_fds[i] = rig_count_fds(pids[i]);
	for (size_t i = 0; line[i]; i++) {
		union {
			char room[CMSG_SPACE(8 * sizeof(int))];
			struct cmsghdr header;
		} control = {.room = {0}};
		struct iovec part = {(void *)(uintptr_t)&line[i], 1};
		struct msghdr message = {.msg_iov = &part,
					 .msg_iovlen = 1,
					 .msg_control = control.room,
					 .msg_controllen = sizeof(control.room)};

		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(8 * sizeof(int));
		for (size_t k = 0; k < 8; k++)
			memcpy(CMSG_DATA(&control.header) + k * sizeof(int), &pushed, sizeof(int));
		assert_int_equal(sendmsg(fd, &message, MSG_NOSIGNAL), 1);
		expect_echo("byte by byte");
	}
	connection = guest_accept_wait(&guest, GUEST_PORT, RIG_LIMIT);
	assert_non_null(connection);
	host_stream_init(&stream, fd);
	guest_watch(&guest, &stream.watch);
	while (host_stream_take_ok(&stream, &port) == 0)
		assert_true(guest_poll(&guest, RIG_LIMIT) > 0);
	/* Front and worker each have the one socket more. (A spare may still have closed some.) */
	for (size_t i = 0; i < n_pids; i++)
		if (n_fds[i] >= 0 && rig_count_fds(pids[i]) > n_fds[i] + 1)
			fail_msg("process %d took fds", pids[i]);
	guest_unwatch(&guest, &stream.watch);
	host_stream_end(&stream);
	assert_int_equal(guest_finish(connection, RIG_LIMIT), 0);
	close(pushed);
	rig_check_neighbour(&rig, 200, "byte by byte");
}

static void test_garbage_is_closed_without_an_answer(void **state)
{
	static const struct {
		const char *bytes;
		size_t len;
	} lines[] = {
#define LINE(text) {text, sizeof(text) - 1}
		LINE("\n"),
		LINE("\0\n"),
		LINE("CONNECT\n"),
		LINE("CONNECT \n"),
		LINE("CONNECT -1\n"),
		LINE("CONNECT +1\n"),
		LINE("CONNECT 0x10\n"),
		LINE("CONNECT 1234x\n"),
		LINE("CONNECT 12 34\n"),
		LINE("CONNECT 1234\0\n"),
		LINE("CONNECT 4294967296\n"),
		LINE("CONNECT 18446744073709552850\n"),
		LINE("CONNECT 99999999999999999999999999999\n"),
		LINE("CONNECTT 1234\n"),
		LINE("GET / HTTP/1.1\r\n\r\n"),
		LINE("OK 1234\n"),
		LINE("CONNECT 00000000000000000000000000000000000000000000000000001234\n"),
		LINE("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
		LINE("\xff\xfe\xfd\xfc\xfb\xfa\n"),
#undef LINE
	};
	static uint8_t noise[100000];

	(void)state;
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		int fd = rig_connect(rig.uds_path);

		send_some(fd, lines[i].bytes, lines[i].len);
		expect_end(fd, lines[i].bytes);
		expect_echo(lines[i].bytes);
	}
	for (uint64_t i = 0; i < 50; i++) {
		int fd = rig_connect(rig.uds_path);

		pattern_fill(noise, sizeof(noise), 100 + i, 0);
		send_some(fd, noise, sizeof(noise));
		expect_end(fd, "noise");
	}
	expect_echo("noise");
	assert_null(guest_accept(&guest, GUEST_PORT));
	rig_check_neighbour(&rig, 200, "garbage");
}

static void test_half_open_connections_take_no_more_than_their_share(void **state)
{
	static int fds[HANDSHAKES + 200];
	const size_t n = sizeof(fds) / sizeof(fds[0]);
	size_t n_ended = 0;
	int64_t deadline;

	(void)state;
	for (size_t i = 0; i < n; i++) {
		fds[i] = rig_connect(rig.uds_path);
		send_some(fds[i], "CONN", i % 5);
	}
	deadline = deadline_in(RIG_LIMIT);
	while (n_ended < n - HANDSHAKES && deadline_left(deadline) > 0) {
		n_ended = 0;
		for (size_t i = 0; i < n; i++)
			n_ended += is_ended(fds[i]);
		assert_true(guest_poll(&guest, 1) >= 0);
	}
	/* More only when those from before had their 5 seconds. */
	assert_true(n_ended >= n - HANDSHAKES);
	expect_echo("half open");
	/* The guest's own connections are not among those that are limited. */
	assert_null(guest_connect_wait(&guest, PACKET_HOST_CID, 9, RIG_LIMIT));
	expect_echo("half open");
	assert_in_range(rig_count_log(&rig, "vm=100"), 1, 100);
	for (size_t i = 0; i < n; i++)
		close(fds[i]);
	rig_check_neighbour(&rig, 200, "half open");
}

static void test_a_storm_of_connections_leaves_nothing(void **state)
{
#ifdef RIG_IS_SANITIZED
	const int n = 300;
#else
	const int n = 2000;
#endif

	(void)state;
	for (int i = 0; i < n; i++) {
		static const char line[] = "CONNECT 1234\nhello";
		int fd = rig_connect(rig.uds_path);

		/* Any part of it, to a port with and to one without a listener. */
		send_some(fd, i % 2 ? line : "CONNECT 1\n", (size_t)(i % (int)sizeof(line)) % 11);
		if (i % 7 == 0)
			send_some(fd, line, sizeof(line) - 1);
		close(fd);
		if (i % 100 == 0)
			expect_echo("storm");
	}
	expect_echo("storm");
	rig_check_neighbour(&rig, 200, "storm");
}

/* ---- connections ---- */

static void test_a_peer_that_never_reads_stops_only_its_own_connection(void **state)
{
	static uint8_t bytes[1 << 20];
	int fds[8], listener = host_listen(rig.uds_path, 78);
	struct guest_connection *connections[8];

	(void)state;
	for (size_t i = 0; i < 8; i++) {
		size_t n_sent = 0;
		ssize_t n;

		connections[i] = guest_connect_wait(&guest, PACKET_HOST_CID, 78, RIG_LIMIT);
		assert_non_null(connections[i]);
		fds[i] = host_accept(listener, RIG_LIMIT);
		/* Until neither credit nor time gives more. */
		while ((n = guest_send(connections[i], bytes, sizeof(bytes))) > 0 ||
		       guest_poll(&guest, 20) > 0)
			n_sent += n > 0 ? (size_t)n : 0;
		assert_in_range(n_sent, 1, 4 << 20);
		expect_echo("never reads");
	}
	for (size_t i = 0; i < 8; i++) {
		close(fds[i]);
		guest_finish(connections[i], RIG_LIMIT);
	}
	close(listener);
	expect_echo("never reads");
	rig_check_neighbour(&rig, 200, "never reads");
}

static void test_a_peer_that_floods_stops_only_its_own_connection(void **state)
{
	static uint8_t bytes[1 << 20];
	int fd = rig_connect(rig.uds_path);
	struct guest_connection *connection;
	size_t n_sent = 0;

	(void)state;
	send_some(fd, "CONNECT 1234\n", 13);
	connection = guest_accept_wait(&guest, GUEST_PORT, RIG_LIMIT);
	assert_non_null(connection);
	/* The guest does not read it. */
	for (int i = 0; i < 200; i++) {
		ssize_t n = send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL | MSG_DONTWAIT);

		n_sent += n > 0 ? (size_t)n : 0;
		expect_echo("flood");
	}
	assert_in_range(n_sent, 1, 8 << 20);
	close(fd);
	guest_abort(connection);
	guest_forget(connection);
	expect_echo("flood");
	rig_check_neighbour(&rig, 200, "flood");
}

static void raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max < 4096 ? limit.rlim_max : 4096;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_RIG(test_a_line_may_come_byte_by_byte_and_with_fds_that_nobody_gets),
		WITH_RIG(test_garbage_is_closed_without_an_answer),
		WITH_RIG(test_half_open_connections_take_no_more_than_their_share),
		WITH_RIG(test_a_storm_of_connections_leaves_nothing),
		WITH_RIG(test_a_peer_that_never_reads_stops_only_its_own_connection),
		WITH_RIG(test_a_peer_that_floods_stops_only_its_own_connection),
	};

	raise_file_limit();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
