/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The test front-end against a small back-end of its own: what the product's
 * tests rely on works, and what they look for is found.
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
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/daemon.h"
#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"
#include "tests/frontend/mock.h"

#define MIB   (1024u * 1024)
#define LIMIT SOCKET_TIMEOUT

static struct daemon home; /* only its directory */
static char socket_path[108];
static pid_t mock_pid;
static uint8_t sent[MIB], received[MIB];

static int set_up(void **state)
{
	(void)state;
	if (daemon_prepare(&home) < 0)
		return -1;
	snprintf(socket_path, sizeof(socket_path), "%s", daemon_path(&home, "vm"));
	mock_pid = mock_start(socket_path);
	return mock_pid < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
	(void)state;
	kill(mock_pid, SIGKILL);
	waitpid(mock_pid, NULL, 0);
	daemon_stop(&home, LIMIT);
	return 0;
}

static void start(struct guest *guest, struct guest_options options)
{
	options.socket = socket_path;
	options.cid = MOCK_CID;
	assert_int_equal(guest_start(guest, &options), 0);
}

static void end(struct guest *guest)
{
	assert_string_equal(guest_violations(guest), "");
	guest_end(guest);
}

static struct guest_connection *connect_to(struct guest *guest, uint32_t port)
{
	struct guest_connection *connection =
		guest_connect_wait(guest, PACKET_HOST_CID, port, LIMIT);

	assert_non_null(connection);
	return connection;
}

/* Send and receive at once, as the peer is an echo with a bounded buffer. */
static void echo(struct guest_connection *connection, size_t len, uint64_t seed)
{
	int64_t deadline = deadline_in(LIMIT);
	size_t n_sent = 0, n_received = 0;

	pattern_fill(sent, len, seed, 0);
	while (n_received < len) {
		ssize_t n = guest_send(connection, sent + n_sent, len - n_sent);

		assert_true(n >= 0 || n == -EAGAIN);
		n_sent += n > 0 ? (size_t)n : 0;
		n = guest_receive(connection, received + n_received, len - n_received);
		assert_true(n > 0 || n == -EAGAIN);
		n_received += n > 0 ? (size_t)n : 0;
		assert_true(deadline_left(deadline) > 0);
		assert_true(guest_poll(connection->guest, n > 0 ? 0 : LIMIT) >= 0);
	}
	assert_true(pattern_is(received, len, seed, 0));
}

static void test_a_mebibyte_comes_back_from_an_echo_in_every_style(void **state)
{
	(void)state;
	for (int style = GUEST_LIKE_QEMU; style <= GUEST_LIKE_CLOUD_HYPERVISOR; style++) {
		struct guest guest;
		struct guest_connection *connection;

		start(&guest, (struct guest_options){.style = (enum guest_style)style});
		connection = connect_to(&guest, MOCK_ECHO);
		echo(connection, MIB, 1);
		assert_int_equal(guest_finish(connection, LIMIT), 0);
		end(&guest);
	}
}

static void test_any_layout_of_packets_and_any_ring_carries_the_same_bytes(void **state)
{
	static const struct memory_layout regions[] = {
		{.guest_address = 0, .size = MIB, .offset = 4096},
		{.guest_address = MIB, .size = 16 * MIB, .is_unsealed = true},
		{.guest_address = 17 * MIB, .size = 32 * MIB},
		{.guest_address = UINT64_C(1) << 32, .size = MIB},
	};
	static const struct guest_layout layouts[] = {
		{.cuts = {44}, .n_cuts = 1},
		{.cuts = {1, 20, 44}, .n_cuts = 3},
		{.cuts = {44}, .n_cuts = 1, .piece_len = 4096},
		{.cuts = {40, 48}, .n_cuts = 2, .piece_len = 4096, .is_indirect = true},
	};
	const uint64_t version_1 = BIT64(VIRTIO_VERSION_1);

	(void)state;
	for (size_t i = 0; i < 4; i++) {
		struct guest guest;
		struct guest_connection *connection;

		start(&guest, (struct guest_options){
				      .features = i % 2 ? 0 : version_1 | BIT64(VIRTIO_INDIRECT),
				      .queue_size = (uint16_t)(32 << i),
				      .tx_layout = layouts[i],
				      .rx_layout = layouts[3 - i],
				      .rx_buffer_size = 2300,
				      .buf_alloc = 10000,
				      .is_straddling = true,
				      .is_prefilled = true,
				      .regions = regions,
				      .n_regions = 4,
			      });
		assert_true(guest.rx_address < regions[1].guest_address &&
			    guest.rx_address + guest.rx_table_len + 2300 >
				    regions[1].guest_address);
		assert_true(guest.tx_address < regions[2].guest_address &&
			    guest.tx_address + 16384 > regions[2].guest_address);
		connection = connect_to(&guest, MOCK_ECHO);
		echo(connection, 200000, i);
		assert_int_equal(guest_finish(connection, LIMIT), 0);
		end(&guest);
	}
}

static void test_a_half_close_lets_the_other_direction_end_by_itself(void **state)
{
	struct guest guest;
	struct guest_connection *connection;

	(void)state;
	start(&guest, (struct guest_options){0});
	connection = connect_to(&guest, MOCK_ECHO);
	pattern_fill(sent, 50000, 3, 0);
	assert_int_equal(guest_send_all(connection, sent, 50000, LIMIT), 0);
	assert_int_equal(guest_shutdown(connection, PACKET_SHUTDOWN_SEND), 0);
	assert_int_equal(guest_send(connection, sent, 1), -EPIPE);
	assert_int_equal(guest_receive_all(connection, received, MIB, LIMIT), 50000);
	assert_true(pattern_is(received, 50000, 3, 0));
	assert_int_equal(connection->peer_shutdown, PACKET_SHUTDOWN_SEND);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	end(&guest);
}

static void test_a_listener_accepts_and_other_ports_refuse(void **state)
{
	struct guest guest;
	struct guest_connection *outer, *inner;

	(void)state;
	start(&guest, (struct guest_options){0});
	assert_null(guest_connect_wait(&guest, PACKET_HOST_CID, 1, LIMIT));
	assert_int_equal(guest_listen(&guest, MOCK_CONNECT_BACK), 0);
	outer = connect_to(&guest, MOCK_CONNECT_BACK);
	inner = guest_accept_wait(&guest, MOCK_CONNECT_BACK, LIMIT);
	assert_non_null(inner);
	echo(inner, 1000, 4);
	echo(outer, 1000, 5);
	assert_int_equal(guest_finish(inner, LIMIT), 0);
	guest_unlisten(&guest, MOCK_CONNECT_BACK);
	assert_int_equal(guest_finish(outer, LIMIT), 0);
	outer = connect_to(&guest, MOCK_CONNECT_BACK);
	assert_null(guest_accept_wait(&guest, MOCK_CONNECT_BACK, 50));
	assert_int_equal(guest_finish(outer, LIMIT), 0);
	end(&guest);
}

static void test_credit_bounds_what_is_sent_and_reading_gives_more(void **state)
{
	struct guest guest;
	struct guest_connection *connection;

	(void)state;
	start(&guest, (struct guest_options){.buf_alloc = 8192});
	connection = connect_to(&guest, MOCK_ECHO);
	pattern_fill(sent, MIB, 6, 0);
	assert_int_equal(guest_send(connection, sent, MIB), 8192);
	assert_int_equal(guest_send(connection, sent, MIB), -EAGAIN);
	assert_int_equal(guest_receive_all(connection, received, 8192, LIMIT), 8192);
	assert_int_equal(guest_send(connection, sent + 8192, 100), 100);
	assert_int_equal(guest_receive_all(connection, received + 8192, 100, LIMIT), 100);
	assert_true(pattern_is(received, 8292, 6, 0));
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	end(&guest);
}

static void count_bytes(void *context, const uint8_t *bytes, size_t len)
{
	size_t *n = context;

	assert_true(pattern_is(bytes, len, 7, *n));
	*n += len;
}

static void test_a_sink_sees_the_payload_where_it_lies(void **state)
{
	struct guest guest;
	struct guest_connection *connection;
	size_t n = 0;

	(void)state;
	start(&guest, (struct guest_options){0});
	connection = connect_to(&guest, MOCK_ECHO);
	connection->sink = count_bytes;
	connection->sink_context = &n;
	pattern_fill(sent, MIB, 7, 0);
	assert_int_equal(guest_send_all(connection, sent, MIB, LIMIT), 0);
	while (n < MIB)
		assert_true(guest_poll(&guest, LIMIT) > 0);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	assert_true(guest_statistics(&guest, GUEST_RX).n_bytes == MIB);
	assert_true(guest_statistics(&guest, GUEST_TX).n_kicks > 0);
	end(&guest);
}

static void test_stop_and_resume_keep_connections_and_lose_nothing(void **state)
{
	(void)state;
	for (int style = GUEST_LIKE_QEMU; style <= GUEST_LIKE_CLOUD_HYPERVISOR; style++) {
		struct guest guest;
		struct guest_connection *connection;

		start(&guest, (struct guest_options){.style = (enum guest_style)style});
		connection = connect_to(&guest, MOCK_ECHO);
		pattern_fill(sent, MIB, 8, 0);
		assert_int_equal(guest_send(connection, sent, 60000), 60000);
		assert_int_equal(guest_stop(&guest), 0);
		/* What a guest offers just before it is stopped waits in the ring. */
		assert_int_equal(guest_send(connection, sent + 60000, 1000), 1000);
		assert_int_equal(guest_poll_for(&guest, 20), 0);
		assert_int_equal(guest_resume(&guest), 0);
		assert_int_equal(guest_receive_all(connection, received, 61000, LIMIT), 61000);
		assert_true(pattern_is(received, 61000, 8, 0));
		assert_int_equal(guest_enable(&guest, false), 0);
		assert_int_equal(guest_send(connection, sent, 10), 10);
		assert_int_equal(guest_poll_for(&guest, 20), 0);
		assert_int_equal(guest_receive(connection, received, 10), -EAGAIN);
		assert_int_equal(guest_enable(&guest, true), 0);
		assert_int_equal(guest_receive_all(connection, received, 10, LIMIT), 10);
		assert_int_equal(guest_finish(connection, LIMIT), 0);
		end(&guest);
	}
}

static void test_a_reset_guest_starts_anew(void **state)
{
	struct guest guest;
	struct guest_connection *old, *new;

	(void)state;
	start(&guest, (struct guest_options){0});
	old = connect_to(&guest, MOCK_ECHO);
	assert_int_equal(guest_reset(&guest), 0);
	assert_int_equal(old->error, ECONNRESET);
	assert_int_equal(guest_resume(&guest), 0);
	new = connect_to(&guest, MOCK_ECHO);
	echo(new, 1000, 9);
	assert_int_equal(guest_finish(new, LIMIT), 0);
	end(&guest);
}

static void test_a_saved_guest_goes_on_at_another_session(void **state)
{
	struct guest guest;
	struct guest_connection *connection;
	char saved[64];
	size_t len;

	(void)state;
	start(&guest, (struct guest_options){.style = GUEST_LIKE_CROSVM});
	connection = connect_to(&guest, MOCK_ECHO);
	echo(connection, 1000, 10);
	assert_int_equal(guest_stop(&guest), 0);
	assert_int_equal(vhost_save(&guest.vhost, saved, sizeof(saved), &len), 0);
	guest_detach(&guest);
	assert_int_equal(guest_attach(&guest, socket_path, saved, len), 0);
	assert_int_equal(guest_resume(&guest), 0);
	/* This back-end forgot its connections. */
	assert_int_equal(guest_send(connection, sent, 1), 1);
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
	echo(connect_to(&guest, MOCK_ECHO), 1000, 11);
	end(&guest);
}

static bool has_transport_reset(void *context)
{
	return ((struct guest *)context)->n_transport_resets > 0;
}

static void test_a_transport_reset_ends_connections_and_gives_the_buffer_back(void **state)
{
	struct guest guest;
	struct guest_connection *connection;

	(void)state;
	start(&guest, (struct guest_options){.style = GUEST_LIKE_CROSVM, .holds_events = true});
	connection = connect_to(&guest, MOCK_ECHO);
	assert_non_null(guest_connect(&guest, PACKET_HOST_CID, MOCK_RESET_TRANSPORT));
	assert_int_equal(guest_wait_until(&guest, has_transport_reset, &guest, LIMIT), 0);
	assert_int_equal(guest.rings[GUEST_EVENT].n_in_flight, GUEST_EVENT_BUFFERS - 1);
	assert_int_equal(connection->state, GUEST_ESTABLISHED);
	assert_int_equal(guest_answer_events(&guest), 0);
	assert_int_equal(guest.rings[GUEST_EVENT].n_in_flight, GUEST_EVENT_BUFFERS);
	assert_int_equal(connection->error, ECONNRESET);
	end(&guest);
}

static void test_each_violation_is_recorded(void **state)
{
	static const struct {
		uint32_t port;
		const char *text;
	} cases[] = {
		{MOCK_RESPOND_TWICE, "RESPONSE that was not awaited"},
		{MOCK_OVERRUN, "RW of"},
		{MOCK_WRONG_USED_LENGTH, "used length 43"},
		{MOCK_SILENT, "used without a call"},
		{MOCK_WRONG_CID, "an unknown connection"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int64_t deadline = deadline_in(LIMIT);
		struct guest guest;

		start(&guest, (struct guest_options){.buf_alloc = 4096});
		/* Again, because a call is missed only by a guest that sleeps already. */
		while (!strstr(guest_violations(&guest), cases[i].text)) {
			if (deadline_left(deadline) == 0)
				fail_msg("port %u: %s", cases[i].port, guest_violations(&guest));
			assert_non_null(guest_connect(&guest, PACKET_HOST_CID, cases[i].port));
			assert_int_equal(guest_poll_for(&guest, 30), 0);
		}
		guest_end(&guest);
	}
}

static void test_a_lost_back_end_ends_every_wait(void **state)
{
	struct guest guest;
	struct guest_connection *connection;

	(void)state;
	start(&guest, (struct guest_options){0});
	connection = connect_to(&guest, MOCK_ECHO);
	kill(mock_pid, SIGKILL);
	assert_int_equal(guest_receive_all(connection, received, 1, LIMIT), -ECONNRESET);
	assert_int_equal(vhost_wait_closed(&guest.vhost), 0);
	assert_int_equal(guest_stop(&guest), -ECONNRESET);
	end(&guest);
}

/* A front-end whose peer is this test. */
static int open_vhost(struct vhost *vhost)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
	*vhost = (struct vhost){.fd = pair[0], .timeout = 50};
	return pair[1];
}

static void test_replies_are_taken_only_as_the_protocol_has_them(void **state)
{
	static const struct {
		uint32_t request, flags, size;
		int result;
	} cases[] = {
		{VHOST_GET_FEATURES, 0x5, 8, 0},       {VHOST_GET_FEATURES, 0xd, 8, -EPROTO},
		{VHOST_GET_FEATURES, 0x1, 8, -EPROTO}, {VHOST_GET_QUEUE_NUM, 0x5, 8, -EPROTO},
		{VHOST_GET_FEATURES, 0x5, 4, -EPROTO}, {VHOST_GET_FEATURES, 0x5, 16, -EPROTO},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint32_t message[7] = {cases[i].request, cases[i].flags, cases[i].size, 77};
		struct vhost vhost;
		int peer = open_vhost(&vhost);
		uint64_t features;

		assert_int_equal(host_write(peer, message, 12 + cases[i].size, LIMIT), 0);
		assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_FEATURES, &features),
				 cases[i].result);
		vhost_close(&vhost);
		close(peer);
	}
}

static void test_a_back_end_that_does_not_answer_is_a_timeout(void **state)
{
	struct vhost vhost;
	int peer = open_vhost(&vhost);
	uint64_t features;

	(void)state;
	assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_FEATURES, &features), -ETIMEDOUT);
	assert_int_equal(vhost_wait_closed(&vhost), -ETIMEDOUT);
	close(peer);
	assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_FEATURES, &features), -ECONNRESET);
	assert_int_equal(vhost_wait_closed(&vhost), 0);
	vhost_close(&vhost);
	assert_int_equal(vhost_connect("/nowhere/at/all", 50, &vhost), -ENOENT);
	assert_int_equal(vhost_connect("/tmp/vsockd-selftest-none", 50, &vhost), -ETIMEDOUT);
}

static void test_a_refused_message_is_told_from_a_broken_one(void **state)
{
	uint32_t nack[] = {VHOST_SET_VRING_NUM, 0x5, 8, 1, 0};
	struct vhost vhost;
	int peer = open_vhost(&vhost);

	(void)state;
	vhost.protocol_features = BIT64(VHOST_PROTOCOL_REPLY_ACK);
	vhost.ack_requests = ~UINT64_C(0);
	assert_int_equal(host_write(peer, nack, sizeof(nack), LIMIT), 0);
	assert_int_equal(vhost_set_ring(&vhost, VHOST_SET_VRING_NUM, 0, 3), VHOST_E_NACK);
	vhost_close(&vhost);
	close(peer);
}

static void test_a_host_stream_moves_while_the_guest_is_polled(void **state)
{
	struct guest guest;
	struct host_stream left, right;
	uint32_t port;
	int pair[2];

	(void)state;
	start(&guest, (struct guest_options){0});
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
	host_stream_init(&left, pair[0]);
	host_stream_init(&right, pair[1]);
	guest_watch(&guest, &left.watch);
	guest_watch(&guest, &right.watch);
	pattern_fill(sent, MIB, 12, 0);
	memcpy(sent, "OK 1073741824\n", 14);
	host_stream_send(&left, sent, MIB, true);
	host_stream_send(&right, "no", 3, true);
	while (!right.is_ended || !left.is_ended)
		assert_true(guest_poll(&guest, LIMIT) > 0);
	assert_int_equal(host_stream_take_ok(&right, &port), 1);
	assert_int_equal(port, 1 << 30);
	assert_int_equal(right.n_received, MIB - 14);
	assert_memory_equal(right.received, sent + 14, MIB - 14);
	assert_int_equal(host_stream_take_ok(&left, &port), -ECONNRESET);
	assert_int_equal(guest_poll_for(&guest, 20), 0);
	guest_unwatch(&guest, &left.watch);
	guest_unwatch(&guest, &right.watch);
	host_stream_end(&left);
	host_stream_end(&right);
	end(&guest);
}

static void test_a_daemon_is_started_looked_into_and_stopped(void **state)
{
	const char *const arguments[] = {
		"sh", "-c",
		"trap 'exit $code' TERM; code=0; sleep 60 & echo 'ready: @'; : > @/vm; "
		"test -e @/bad && { code=3; echo 'runtime error: x'; }; while :; do wait; done",
		NULL};
	int64_t deadline = deadline_in(LIMIT);
	struct daemon daemon = {0};
	pid_t pids[DAEMON_PIDS_MAX];

	(void)state;
	assert_int_equal(daemon_start(&daemon, arguments, "vm", LIMIT), 0);
	assert_int_equal(daemon_wait_log(&daemon, "ready: /", LIMIT), 0);
	assert_int_equal(daemon_wait_log(&daemon, "nothing such", 20), -ETIMEDOUT);
	assert_int_equal(daemon_pids(&daemon, pids), 2);
	assert_true(daemon_count_fds(&daemon) >= 6);
	assert_true(daemon_resident(&daemon) > 4096);
	/* It may be a copy of its shell yet. */
	while (daemon_find(&daemon, "sleep", pids) != 1) {
		assert_true(deadline_left(deadline) > 0);
		poll(NULL, 0, 1);
	}
	assert_int_equal(daemon_kill(pids[0], LIMIT), 0);
	assert_int_equal(daemon_stop(&daemon, LIMIT), 0);
	assert_int_equal(access("/proc/self/fd/0", F_OK), 0);
}

static void test_a_daemon_that_fails_is_noticed(void **state)
{
	const char *const dies[] = {"false", NULL};
	const char *const reports[] = {"sh", "-c",
				       "trap 'exit 0' TERM; echo 'runtime error: x'; : > @/vm; "
				       "while :; do sleep 60 & wait; done",
				       NULL};
	const char *const clings[] = {"sh", "-c", "trap '' TERM; : > @/vm; sleep 60", NULL};
	struct daemon daemon = {0};

	(void)state;
	assert_int_equal(daemon_start(&daemon, dies, "vm", LIMIT), -ECHILD);
	assert_int_equal(daemon_start(&daemon, reports, "vm", LIMIT), 0);
	assert_int_equal(daemon_stop(&daemon, LIMIT), -EBADMSG);
	assert_int_equal(daemon_start(&daemon, clings, "vm", LIMIT), 0);
	assert_int_equal(daemon_stop(&daemon, 50), -ETIMEDOUT);
}

#define WITH_MOCK(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_MOCK(test_a_mebibyte_comes_back_from_an_echo_in_every_style),
		WITH_MOCK(test_any_layout_of_packets_and_any_ring_carries_the_same_bytes),
		WITH_MOCK(test_a_half_close_lets_the_other_direction_end_by_itself),
		WITH_MOCK(test_a_listener_accepts_and_other_ports_refuse),
		WITH_MOCK(test_credit_bounds_what_is_sent_and_reading_gives_more),
		WITH_MOCK(test_a_sink_sees_the_payload_where_it_lies),
		WITH_MOCK(test_stop_and_resume_keep_connections_and_lose_nothing),
		WITH_MOCK(test_a_reset_guest_starts_anew),
		WITH_MOCK(test_a_saved_guest_goes_on_at_another_session),
		WITH_MOCK(test_a_transport_reset_ends_connections_and_gives_the_buffer_back),
		WITH_MOCK(test_each_violation_is_recorded),
		WITH_MOCK(test_a_lost_back_end_ends_every_wait),
		WITH_MOCK(test_a_host_stream_moves_while_the_guest_is_polled),
		cmocka_unit_test(test_replies_are_taken_only_as_the_protocol_has_them),
		cmocka_unit_test(test_a_back_end_that_does_not_answer_is_a_timeout),
		cmocka_unit_test(test_a_refused_message_is_told_from_a_broken_one),
		cmocka_unit_test(test_a_daemon_is_started_looked_into_and_stopped),
		cmocka_unit_test(test_a_daemon_that_fails_is_noticed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
