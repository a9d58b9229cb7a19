/* SPDX-License-Identifier: Apache-2.0 */

/*
 * SOCK_SEQPACKET: one message is one message, both ways, whatever its length, and
 * whoever is slow. What can't be carried ends the connection and is said in the log.
 */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"

#define KIB   1024u
#define LIMIT SETUP_LIMIT
#define PORT  1234u
#define LONG  (600 * KIB)

static uint8_t bytes[LONG], received[LONG];

static int end(void **state)
{
	struct setup *setup = *state;

	assert_false(daemon_log_has(&setup->daemon, "worker lost"));
	return setup_end(state);
}

/* What a unix socket takes at once: its send buffer but for what the kernel keeps of it. */
static size_t longest_message(void)
{
	int pair[2], size = 0;
	socklen_t len = sizeof(size);

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	assert_int_equal(getsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, &len), 0);
	close(pair[0]);
	close(pair[1]);
	return (size_t)size - 32 - 1; /* the kernel's part, and the workers' between guests */
}

/* ---- the host program ---- */

struct host {
	struct watch watch;
	bool is_ready;
};

static void note_ready(struct watch *watch, short events)
{
	(void)events;
	((struct host *)watch)->is_ready = true;
	watch->events = 0;
}

static void host_start(struct guest *guest, struct host *host, int fd)
{
	assert_true(fd >= 0);
	*host = (struct host){.watch = {.fd = fd, .ready = note_ready}};
	guest_watch(guest, &host->watch);
}

static void host_end(struct guest *guest, struct host *host)
{
	guest_unwatch(guest, &host->watch);
	close(host->watch.fd);
}

static void host_wait(struct guest *guest, struct host *host, short events, int64_t deadline)
{
	host->watch.events = events;
	assert_true(deadline_left(deadline) > 0);
	assert_true(guest_poll(guest, deadline_left(deadline)) >= 0);
}

/* Its length: recv(2) says it whatever the room. Negative errno. */
static ssize_t host_receive(struct guest *guest, struct host *host)
{
	int64_t deadline = deadline_in(LIMIT);

	for (;;) {
		ssize_t n = recv(host->watch.fd, received, sizeof(received), MSG_TRUNC);

		if (n >= 0)
			return n;
		if (errno != EAGAIN)
			return -errno;
		host_wait(guest, host, POLLIN, deadline);
	}
}

static void host_send(struct guest *guest, struct host *host, const void *message, size_t len)
{
	int64_t deadline = deadline_in(LIMIT);

	while (send(host->watch.fd, message, len, MSG_NOSIGNAL) < 0) {
		assert_int_equal(errno, EAGAIN);
		host_wait(guest, host, POLLOUT, deadline);
	}
}

static struct guest_connection *connect_guest(struct setup *setup, uint32_t port,
					      struct host *ret_host)
{
	int listener = host_listen_messages(setup->uds_paths[0], port);
	struct guest *guest = &setup->guests[0];
	struct guest_connection *connection;
	char path[128];

	assert_true(listener >= 0);
	connection = guest_connect_messages(guest, PACKET_HOST_CID, port);
	assert_non_null(connection);
	assert_int_equal(guest_wait_state(connection, GUEST_ESTABLISHED, LIMIT), 0);
	host_start(guest, ret_host, host_accept(listener, LIMIT));
	close(listener);
	snprintf(path, sizeof(path), "%s_%u", setup->uds_paths[0], port);
	assert_int_equal(unlink(path), 0);
	return connection;
}

static struct guest_connection *connect_host(struct setup *setup, uint32_t port,
					     struct host *ret_host)
{
	struct guest *guest = &setup->guests[0];
	struct guest_connection *connection;
	char line[32];

	guest_listen_messages(guest, port);
	host_start(guest, ret_host, host_connect_messages(setup->uds_paths[0], port, LIMIT));
	connection = guest_accept_wait(guest, port, LIMIT);
	assert_non_null(connection);
	assert_int_equal(connection->type, PACKET_SEQPACKET);
	snprintf(line, sizeof(line), "OK %u\n", connection->peer_port);
	assert_int_equal(host_receive(guest, ret_host), strlen(line));
	assert_memory_equal(received, line, strlen(line));
	return connection;
}

static void finish(struct guest_connection *connection, struct host *host)
{
	struct guest *guest = connection->guest;

	assert_int_equal(guest_finish(connection, LIMIT), 0);
	assert_int_equal(host_receive(guest, host), 0);
	host_end(guest, host);
}

static void to_host(struct guest_connection *connection, struct host *host, size_t len)
{
	pattern_fill(bytes, len, len, 0);
	assert_int_equal(guest_send_message(connection, bytes, len, 0, LIMIT), 0);
	assert_int_equal(host_receive(connection->guest, host), len);
	assert_true(pattern_is(received, len, len, 0));
}

static void to_guest(struct guest_connection *connection, struct host *host, size_t len)
{
	pattern_fill(bytes, len, len + 1, 0);
	host_send(connection->guest, host, bytes, len);
	assert_int_equal(guest_receive_message_wait(connection, received, sizeof(received), LIMIT),
			 len);
	assert_true(pattern_is(received, len, len + 1, 0));
}

static const size_t lens[] = {0,     1,	    43,	   44,	      4051,   4052,	 4053,
			      4095,  4096,  4097,  8103,      8104,   8105,	 10000,
			      65535, 65536, 65537, 64 * 1500, 131072, 200 * KIB, 0};
#define LENS (sizeof(lens) / sizeof(lens[0]))

/* ---- tests ---- */

static void test_messages_of_any_length_go_both_ways_whole(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	struct host host;

	for (int i = 0; i < 2; i++) {
		connection = i == 0 ? connect_guest(setup, PORT, &host)
				    : connect_host(setup, PORT + 1, &host);
		for (size_t k = 0; k < LENS; k++) {
			to_host(connection, &host, lens[k]);
			to_guest(connection, &host, lens[k]);
		}
		to_host(connection, &host, longest_message());
		to_guest(connection, &host, longest_message());
		finish(connection, &host);
	}
	assert_string_equal(guest_violations(guest), "");
}

static void test_any_rx_buffers_and_any_packets_make_the_same_messages(void **state)
{
	static const struct guest_options options[] = {
		{.rx_buffer_size = 100, .queue_size = 16},
		{.rx_buffer_size = 1000, .queue_size = 8, .style = GUEST_LIKE_CROSVM},
		{.rx_layout = {.cuts = {20, 44, 50}, .n_cuts = 3, .piece_len = 1000}},
		{.tx_layout = {.cuts = {44}, .n_cuts = 1, .piece_len = 1500, .is_indirect = true},
		 .style = GUEST_LIKE_CLOUD_HYPERVISOR},
		{.buf_alloc = 220000, .rx_buffer_size = 65536 + 44, .queue_size = 4},
	};
	struct setup *setup = *state;

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		struct guest_connection *connection;
		struct host host;

		setup_guest(setup, 0, options[i]);
		connection = connect_guest(setup, PORT, &host);
		for (uint32_t size = 700; size < 70000; size *= 9) {
			connection->packet_size = size < 65536 ? size : 65536;
			for (size_t k = 0; k < LENS; k++) {
				to_host(connection, &host, lens[k]);
				to_guest(connection, &host, lens[k]);
			}
		}
		finish(connection, &host);
		setup_end_guest(setup, 0);
	}
}

/* Both directions at a time, and neither reads when the other one would like it to. */
static void test_many_messages_wait_for_slow_readers_and_none_is_lost(void **state)
{
	enum { N = 3000 };
	static size_t guest_lens[N], host_lens[N];
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host host;
	struct guest_connection *connection = connect_guest(setup, PORT, &host);
	size_t n_guest_sent = 0, n_host_sent = 0, n_guest_read = 0, n_host_read = 0;
	int64_t deadline = deadline_in(4 * LIMIT);

	srand(5);
	for (size_t i = 0; i < N; i++) {
		guest_lens[i] = (size_t)rand() % (i % 50 ? 300 : 100000);
		host_lens[i] = (size_t)rand() % (i % 50 ? 300 : 100000);
	}
	while (n_guest_read < N || n_host_read < N) {
		unsigned int what = (unsigned int)rand();

		assert_true(deadline_left(deadline) > 0);
		if (n_guest_sent < N && what % 3) {
			size_t len = guest_lens[n_guest_sent];
			int r;

			pattern_fill(bytes, len, n_guest_sent, 0);
			/* As a socket that would block: all of it or, for now, nothing. */
			r = connection->tx_cnt + len - connection->peer_fwd_cnt <=
					    connection->peer_buf_alloc
				    ? guest_send_message(connection, bytes, len, 0, LIMIT)
				    : -EAGAIN;
			assert_true(r == 0 || r == -EAGAIN);
			n_guest_sent += r == 0;
		}
		if (n_host_sent < N && what % 5) {
			pattern_fill(bytes, host_lens[n_host_sent], n_host_sent + N, 0);
			n_host_sent += send(host.watch.fd, bytes, host_lens[n_host_sent],
					    MSG_NOSIGNAL) >= 0;
		}
		for (unsigned int i = 0; i < (what >> 8) % 7; i++) {
			ssize_t n = recv(host.watch.fd, received, sizeof(received), MSG_TRUNC);

			if (n < 0)
				break;
			assert_true(n_host_read < N);
			assert_int_equal(n, guest_lens[n_host_read]);
			assert_true(pattern_is(received, (size_t)n, n_host_read, 0));
			n_host_read++;
		}
		for (unsigned int i = 0; i < (what >> 16) % 7; i++) {
			ssize_t n = guest_receive_message(connection, received, sizeof(received));

			if (n < 0)
				break;
			assert_true(n_guest_read < N);
			assert_int_equal(n, host_lens[n_guest_read]);
			assert_true(pattern_is(received, (size_t)n, n_guest_read + N, 0));
			n_guest_read++;
		}
		assert_true(guest_poll(guest, (what >> 24) % 50 ? 0 : 1) >= 0);
	}
	finish(connection, &host);
}

static void test_each_direction_ends_by_itself(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	struct host host;

	connection = connect_guest(setup, PORT, &host);
	to_host(connection, &host, 5);
	assert_int_equal(guest_shutdown(connection, PACKET_SHUTDOWN_SEND), 0);
	assert_int_equal(host_receive(guest, &host), 0);
	to_guest(connection, &host, 50000);
	host_send(guest, &host, "last", 4);
	host_end(guest, &host);
	assert_int_equal(guest_receive_message_wait(connection, received, 10, LIMIT), 4);
	assert_int_equal(guest_receive_message_wait(connection, received, 10, LIMIT), -ENODATA);
	assert_int_equal(guest_finish(connection, LIMIT), 0);

	connection = connect_host(setup, PORT, &host);
	host_send(guest, &host, "last", 4);
	assert_int_equal(shutdown(host.watch.fd, SHUT_WR), 0);
	assert_int_equal(guest_receive_message_wait(connection, received, 10, LIMIT), 4);
	assert_int_equal(guest_receive_message_wait(connection, received, 10, LIMIT), -ENODATA);
	to_host(connection, &host, 60000);
	finish(connection, &host);
}

static void test_what_can_not_be_carried_ends_the_connection_and_is_said(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){.buf_alloc = 20000});
	struct guest_connection *connection;
	struct host host;

	connection = connect_guest(setup, PORT, &host);
	assert_int_equal(connection->peer_buf_alloc, longest_message());
	assert_int_equal(guest_send_message(connection, bytes, longest_message() + 1, 0, LIMIT),
			 -EMSGSIZE);
	to_guest(connection, &host, 20000);
	host_send(guest, &host, bytes, 20001);
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
	assert_int_equal(daemon_wait_log(&setup->daemon,
					 "20001 is the length of a message for which the guest "
					 "has no room",
					 LIMIT),
			 0);
	assert_true(host_receive(guest, &host) <= 0);
	host_end(guest, &host);
	guest_forget(connection);
}

static void test_a_listener_of_the_other_type_refuses(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	int streams = host_listen(setup->uds_paths[0], PORT);
	int messages = host_listen_messages(setup->uds_paths[0], PORT + 1);
	struct guest_connection *connections[2];
	struct host host;

	assert_true(streams >= 0 && messages >= 0);
	connections[0] = guest_connect_messages(guest, PACKET_HOST_CID, PORT);
	connections[1] = guest_connect(guest, PACKET_HOST_CID, PORT + 1);
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(guest_wait_state(connections[i], GUEST_CLOSED, LIMIT), 0);
		assert_int_equal(connections[i]->error, ECONNRESET);
		guest_forget(connections[i]);
	}
	assert_int_equal(daemon_wait_log(&setup->daemon,
					 "host port 1234: Protocol wrong type for socket", LIMIT),
			 0);
	assert_int_equal(daemon_wait_log(&setup->daemon,
					 "host port 1235: Protocol wrong type for socket", LIMIT),
			 0);
	close(streams);
	close(messages);

	/* And the other way round. */
	guest_listen(guest, 50);
	host_start(guest, &host, host_connect_messages(setup->uds_paths[0], 50, LIMIT));
	assert_int_equal(host_receive(guest, &host), 0);
	host_end(guest, &host);
}

static void expect_refusal(struct setup *setup, const char *suffix, int type)
{
	struct guest *guest = &setup->guests[0];
	struct host host;
	char path[128];

	snprintf(path, sizeof(path), "%s%s", setup->uds_paths[0], suffix);
	host_start(guest, &host, socket_connect(path, type, LIMIT));
	assert_true(host_receive(guest, &host) <= 0);
	host_end(guest, &host);
	assert_int_equal(daemon_wait_log(&setup->daemon,
					 "host program refused: the guest's driver has no sockets "
					 "of this type",
					 LIMIT),
			 0);
}

static void test_a_driver_gets_the_types_that_it_negotiated(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connection;
	struct guest *guest;
	struct host host;

	setup_guest(setup, 0, (struct guest_options){.features = BIT64(VIRTIO_VERSION_1)});
	expect_refusal(setup, "_seqpacket", SOCK_SEQPACKET);
	setup_end_guest(setup, 0);

	guest = setup_guest(setup, 0,
			    (struct guest_options){.features = BIT64(VIRTIO_VERSION_1) |
							       BIT64(VIRTIO_SEQPACKET) |
							       BIT64(VIRTIO_NO_IMPLIED_STREAM)});
	connection = connect_host(setup, PORT, &host);
	to_host(connection, &host, 1000);
	finish(connection, &host);
	expect_refusal(setup, "", SOCK_STREAM);
	assert_null(guest_connect_wait(guest, PACKET_HOST_CID, PORT + 1, LIMIT));
}

static void test_rings_that_stop_hold_messages_up_and_lose_none(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(
		setup, 0, (struct guest_options){.rx_buffer_size = 1000, .n_rx_buffers = 8});
	struct host host;
	struct guest_connection *connection = connect_host(setup, PORT, &host);

	pattern_fill(bytes, 100000, 9, 0);
	for (size_t i = 0; i < 10; i++) {
		host_send(guest, &host, bytes, 100000);
		/* Somewhere within it. */
		assert_true(guest_poll(guest, LIMIT) >= 0);
		assert_int_equal(guest_stop(guest), 0);
		assert_int_equal(guest_resume(guest), 0);
		assert_int_equal(
			guest_receive_message_wait(connection, received, sizeof(received), LIMIT),
			100000);
		assert_memory_equal(received, bytes, 100000);
	}
	finish(connection, &host);
}

static void test_a_worker_that_dies_resets_messages_on_both_ends(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connections[2];
	struct host hosts[2];

	connections[0] = connect_guest(setup, PORT, &hosts[0]);
	connections[1] = connect_host(setup, PORT + 1, &hosts[1]);
	assert_int_equal(kill(setup_worker(setup, 0), SIGKILL), 0);
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(guest_wait_state(connections[i], GUEST_CLOSED, LIMIT), 0);
		assert_int_equal(connections[i]->error, ECONNRESET);
		assert_true(host_receive(guest, &hosts[i]) <= 0);
		guest_forget(connections[i]);
		host_end(guest, &hosts[i]);
	}
	connections[0] = connect_guest(setup, PORT, &hosts[0]);
	to_host(connections[0], &hosts[0], 70000);
	to_guest(connections[0], &hosts[0], 70000);
	finish(connections[0], &hosts[0]);
}

static void test_the_socket_for_messages_has_the_access_of_the_other(void **state)
{
	struct setup *setup = *state;
	struct stat status;
	char path[128];

	snprintf(path, sizeof(path), "%s_seqpacket", setup->uds_paths[0]);
	assert_int_equal(stat(path, &status), 0);
	assert_true(S_ISSOCK(status.st_mode));
	assert_int_equal(status.st_mode & 07777, 0624);
	/* setup_end() finds that none of the sockets is left. */
}

static int start_with_mode(void **state)
{
	struct setup *setup = calloc(1, sizeof(*setup));

	assert_non_null(setup);
	*state = setup;
	setup_start(setup, 1, "uds-mode=624", NULL);
	return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup_start_one, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_messages_of_any_length_go_both_ways_whole),
		TEST(test_any_rx_buffers_and_any_packets_make_the_same_messages),
		TEST(test_many_messages_wait_for_slow_readers_and_none_is_lost),
		TEST(test_each_direction_ends_by_itself),
		TEST(test_what_can_not_be_carried_ends_the_connection_and_is_said),
		TEST(test_a_listener_of_the_other_type_refuses),
		TEST(test_a_driver_gets_the_types_that_it_negotiated),
		TEST(test_rings_that_stop_hold_messages_up_and_lose_none),
		cmocka_unit_test_setup_teardown(
			test_a_worker_that_dies_resets_messages_on_both_ends, setup_start_one,
			setup_end),
		cmocka_unit_test_setup_teardown(
			test_the_socket_for_messages_has_the_access_of_the_other, start_with_mode,
			end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
