/* SPDX-License-Identifier: Apache-2.0 */

/* Sockets of other kinds than the uds-path: no handshake, no OK, slow to connect; and waiting. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>

#include "tests/unit/device_rig.h"

static int start(const struct rig_options *options)
{
	rig_start(options);
	rig_offer(64, 4096);
	return 0;
}

static int set_up(void **state)
{
	(void)state;
	return start(&(struct rig_options){0});
}

static int set_up_patient(void **state)
{
	(void)state;
	return start(&(struct rig_options){.wait_ms = 3 * CONNECTION_RETRY_MS});
}

static int set_up_quiet(void **state)
{
	(void)state;
	return start(&(struct rig_options){.is_quiet = true});
}

static int set_up_slow(void **state)
{
	(void)state;
	return start(&(struct rig_options){.bytes_per_second = 65536, .buffer_size = 256 * 1024});
}

static int set_up_denied(void **state)
{
	(void)state;
	return start(&(struct rig_options){.incoming = {{20, 30, true}}, .n_incoming = 1});
}

static int set_up_allowed(void **state)
{
	(void)state;
	return start(&(struct rig_options){.incoming = {{20, 30, true}, {25, 40, false}},
					   .n_incoming = 2});
}

static int tear_down(void **state)
{
	(void)state;
	rig_end();
	return 0;
}

static struct rig_peer be_asked_directly(uint32_t guest_port)
{
	struct rig_peer peer = {.guest_port = guest_port, .buf_alloc = RIG_GUEST_BUFFER};
	static struct rig_packet packet;

	peer.endpoint = rig_accept_direct(&peer.host, guest_port);
	rig_run();
	assert_true(rig_take(&packet));
	assert_int_equal(packet.header.op, PACKET_OP_REQUEST);
	assert_int_equal(packet.header.dst_port, guest_port);
	peer.host_port = packet.header.src_port;
	return peer;
}

static void test_a_direct_connection_has_no_lines_before_the_stream(void **state)
{
	struct rig_peer peer = be_asked_directly(22);
	const struct rig_packet *packet;

	(void)state;
	rig_host_writes(&peer, "SSH-2.0", 7);
	rig_run();
	rig_expect_no_packet(); /* nothing is read before the guest accepts */
	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	packet = rig_expect(&peer, PACKET_OP_RW);
	assert_memory_equal(packet->payload, "SSH-2.0", 7);
	rig_host_reads_nothing(&peer);
	rig_rw(&peer, "SSH-1", 5);
	rig_host_reads(&peer, "SSH-1", 5);
	rig_close_host(&peer);
}

static void test_a_direct_connection_is_closed_when_the_guest_refuses(void **state)
{
	struct rig_peer peer = be_asked_directly(22);

	(void)state;
	rig_say(&peer, PACKET_OP_RST, 0);
	rig_host_reads_end(&peer);
	rig_expect_report(REPORT_HANDSHAKE_FAILED, NULL);
	rig_close_host(&peer);
}

static void test_a_quiet_listener_gives_no_ok(void **state)
{
	struct rig_peer peer;

	(void)state;
	peer = rig_host_asks(22);
	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	rig_host_reads_nothing(&peer);
	rig_rw(&peer, "first", 5);
	rig_host_reads(&peer, "first", 5);
	rig_close_host(&peer);
}

/* ---- a guest that does not listen yet ---- */

static void test_a_guest_that_refuses_is_asked_again_in_time(void **state)
{
	struct rig_peer peer = rig_host_asks(22);

	(void)state;
	for (uint32_t i = 0; i < 3; i++) {
		rig_say(&peer, PACKET_OP_RST, 0);
		rig_expect_no_packet();
		rig_sleep(CONNECTION_RETRY_MS - 1);
		rig_expect_no_packet();
		rig_sleep(1);
		rig_expect(&peer, PACKET_OP_REQUEST);
	}
	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	rig_rw(&peer, "x", 1);
	rig_run();
	assert_false(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_a_guest_is_not_asked_more_often_than_it_may_be(void **state)
{
	struct rig_peer peer = rig_host_asks(22);

	(void)state;
	for (uint32_t i = 0; i < 3; i++) {
		rig_say(&peer, PACKET_OP_RST, 0);
		rig_sleep(CONNECTION_RETRY_MS);
		rig_expect(&peer, PACKET_OP_REQUEST);
	}
	rig_say(&peer, PACKET_OP_RST, 0);
	rig_host_reads_end(&peer);
	rig_expect_report(REPORT_HANDSHAKE_FAILED, NULL);
	assert_int_equal(device_timeout(&rig.device), -1);
	rig_close_host(&peer);
}

static void test_refusing_more_than_once_costs_one_turn(void **state)
{
	struct rig_peer peer = rig_host_asks(22);

	(void)state;
	for (uint32_t i = 0; i < 10; i++)
		rig_say(&peer, PACKET_OP_RST, 0);
	rig_sleep(CONNECTION_RETRY_MS);
	rig_expect(&peer, PACKET_OP_REQUEST);
	rig_expect_no_packet();
	rig_close_host(&peer);
}

static void test_a_host_program_that_leaves_while_it_waits_ends_the_asking(void **state)
{
	struct rig_peer peer = rig_host_asks(22);

	(void)state;
	rig_say(&peer, PACKET_OP_RST, 0);
	rig_close_host(&peer);
	rig_sleep(CONNECTION_RETRY_MS);
	rig_expect_no_packet();
	rig_expect_report(REPORT_HANDSHAKE_FAILED, NULL);
	assert_int_equal(rig.device.connections.n_used, 0);
}

/* ---- sockets that are on their way ---- */

/* A TCP socket that cannot get there before accept() or close() of the listener. */
static int start_connecting(struct rig_peer *peer, int *ret_listener)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	socklen_t len = sizeof(at);
	int fd;

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	*ret_listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(*ret_listener, (struct sockaddr *)&at, sizeof(at)), 0);
	assert_int_equal(getsockname(*ret_listener, (struct sockaddr *)&at, &len), 0);
	assert_int_equal(listen(*ret_listener, 8), 0);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (connect(fd, (struct sockaddr *)&at, sizeof(at)))
		assert_int_equal(errno, EINPROGRESS);
	peer->endpoint = rig_endpoint_of(fd);
	return fd;
}

static void test_the_guest_is_answered_when_the_socket_is_connected(void **state)
{
	struct rig_peer peer = rig_ask(1000, 80);
	int listener, fd = start_connecting(&peer, &listener);

	(void)state;
	rig_connected_later(&peer, fd);
	/* Whenever it gets there: the loop is told. */
	for (int i = 0; i < 100 && rig.device.connections.n_used > 0 && !rig_has_packet(); i++)
		rig_sleep(1);
	rig_expect(&peer, PACKET_OP_RESPONSE);
	peer.host = accept(listener, NULL, NULL);
	assert_int_equal(fcntl(peer.host, F_SETFL, O_NONBLOCK), 0);
	rig_rw(&peer, "hello", 5);
	rig_host_reads(&peer, "hello", 5);
	rig_close_host(&peer);
	close(listener);
}

/* An unconnected socket of that kind says nothing at all: the other end of time. */
static void test_a_socket_that_does_not_get_there_in_time_is_given_up(void **state)
{
	struct rig_peer peer = rig_ask(1000, 80);
	int worker;

	(void)state;
	peer.endpoint = rig_endpoint(PACKET_TYPE_STREAM, &peer.host, &worker);
	rig_fill(worker); /* never writable */
	rig_connected_later(&peer, worker);
	rig_run();
	rig_expect_no_packet();
	rig_sleep(CONNECTION_CONNECT_MS);
	rig_expect(&peer, PACKET_OP_RST);
	rig_expect_report(REPORT_CONNECT_FAILED, NULL);
	assert_true(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_a_socket_that_fails_on_its_way_is_a_refusal(void **state)
{
	struct rig_peer peer = rig_ask(1000, 80);
	int worker;

	(void)state;
	peer.endpoint = rig_endpoint(PACKET_TYPE_STREAM, &peer.host, &worker);
	rig_fill(worker);
	rig_connected_later(&peer, worker);
	rig_run();
	rig_close_host(&peer);
	rig_run();
	rig_expect(&peer, PACKET_OP_RST);
	rig_expect_report(REPORT_CONNECT_FAILED, NULL);
}

static void test_a_guest_may_give_up_a_socket_that_is_on_its_way(void **state)
{
	static const enum packet_op ops[] = {PACKET_OP_RST, PACKET_OP_SHUTDOWN, PACKET_OP_RW,
					     PACKET_OP_REQUEST};

	(void)state;
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		struct rig_peer peer = rig_ask(1000, 80);
		int worker;

		peer.endpoint = rig_endpoint(PACKET_TYPE_STREAM, &peer.host, &worker);
		rig_fill(worker);
		rig_connected_later(&peer, worker);
		rig_run();
		rig_say(&peer, ops[i], PACKET_SHUTDOWN_BOTH);
		if (ops[i] != PACKET_OP_RST)
			rig_expect(&peer, PACKET_OP_RST);
		rig_expect_no_packet();
		assert_true(rig_is_closed(peer.endpoint));
		assert_int_equal(rig.device.connections.n_used, 0);
		rig_close_host(&peer);
	}
}

/* ---- who may, and how much ---- */

static bool is_let_in(uint32_t port)
{
	char line[32];
	struct rig_peer peer = {.guest_port = port};
	int len = snprintf(line, sizeof(line), "CONNECT %u\n", port);
	bool is_asked;

	peer.endpoint = rig_accept(&peer.host);
	rig_host_writes(&peer, line, (size_t)len);
	rig_run();
	is_asked = rig_has_packet();
	if (is_asked)
		(void)rig_take(&(struct rig_packet){0});
	else
		rig_expect_report(REPORT_HANDSHAKE_FAILED, NULL);
	rig_close_host(&peer);
	rig_run();
	while (rig_has_packet())
		(void)rig_take(&(struct rig_packet){0});
	rig_collect();
	rig.n_told = 0;
	return is_asked;
}

static void test_what_is_denied_is_not_reached(void **state)
{
	(void)state;
	assert_true(is_let_in(19));
	assert_false(is_let_in(20));
	assert_false(is_let_in(30));
	assert_true(is_let_in(31));
	assert_int_equal(rig.device.connections.n_used, 0);
}

static void test_where_some_are_allowed_no_others_are(void **state)
{
	(void)state;
	assert_false(is_let_in(19));
	assert_false(is_let_in(22));
	assert_false(is_let_in(25)); /* both: denied */
	assert_true(is_let_in(31));
	assert_false(is_let_in(41));
	assert_int_equal(rig.device.connections.n_used, 0);
}

static void test_bytes_to_the_guest_wait_for_their_second(void **state)
{
	static uint8_t bytes[100000];
	struct rig_peer peer = rig_guest_connects(1000, 80);
	uint32_t n = 0, n_rounds = 0;

	(void)state;
	rig_host_writes(&peer, bytes, sizeof(bytes));
	rig_run();
	while (n < sizeof(bytes)) {
		static struct rig_packet packet;
		uint32_t before = n, n_used = 0;

		for (; rig_take(&packet); n_used++)
			n += packet.header.op == PACKET_OP_RW ? packet.header.len : 0;
		if (n_rounds == 0)
			assert_int_equal(n, 65536); /* the bucket is never smaller */
		assert_true(n_rounds++ < 200);
		if (n == before && rig.device.rate.is_dry)
			assert_in_range(device_timeout(&rig.device), 1, 1000);
		rig_offer(n_used, 4096);
		rig_sleep(50);
	}
	assert_true(n_rounds > 5);
	rig_expect_report(REPORT_RATE_LIMIT, NULL);
	rig_close_host(&peer);
}

static void test_bytes_of_the_guest_wait_for_their_second(void **state)
{
	static uint8_t bytes[30000];
	struct rig_peer peer = rig_guest_connects(1000, 80);

	(void)state;
	rig_n_sent();
	for (uint32_t i = 0; i < 4; i++) {
		struct packet_header header = rig_header(&peer, PACKET_OP_RW);

		header.len = sizeof(bytes);
		rig_put(&header, bytes);
	}
	rig_run();
	/* The third one was too much: the fourth waits in the ring. */
	assert_int_equal(rig_n_sent(), 3);
	assert_in_range(device_timeout(&rig.device), 500, 1000);
	rig_sleep(500);
	assert_int_equal(rig_n_sent(), 0);
	rig_sleep(500);
	assert_int_equal(rig_n_sent(), 1);
	rig_close_host(&peer);
}

/* Only bytes are held up: the end of a connection comes at once. */
/* A ring that runs alone has its second, too. */
static void test_bytes_of_the_guest_wait_no_longer_when_nothing_goes_to_it(void **state)
{
	static uint8_t bytes[65536];
	struct rig_peer peer;

	(void)state;
	rig_offer(4, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_ring_enable(RING_RX, false);
	rig_rw(&peer, bytes, sizeof(bytes));
	rig_host_reads(&peer, bytes, sizeof(bytes));
	rig_rw(&peer, "later", 5);
	rig_host_reads_nothing(&peer);
	assert_in_range(device_timeout(&rig.device), 1, 1000);
	rig_sleep((uint64_t)device_timeout(&rig.device));
	rig_host_reads(&peer, "later", 5);
	rig_close_host(&peer);
}

static void test_what_is_no_byte_does_not_wait_for_its_second(void **state)
{
	static uint8_t bytes[100000];
	static struct rig_packet packet;
	struct rig_peer peer = rig_guest_connects(1000, 80);
	Vsockd__Abort abort = VSOCKD__ABORT__INIT;
	Vsockd__Envelope envelope;

	(void)state;
	rig_host_writes(&peer, bytes, sizeof(bytes));
	rig_run();
	while (rig_take(&packet))
		;
	assert_true(rig.device.rate.is_dry);
	rig_offer(4, 4096);
	rig_run();
	rig_expect_no_packet();
	abort.endpoint = peer.endpoint;
	message_wrap(&abort.base, &envelope);
	rig_post(&envelope, -1);
	rig_run();
	rig_expect(&peer, PACKET_OP_RST);
	rig_close_host(&peer);
}

/* The guest floods, and so does the host: neither is shut out. */
static void test_the_two_directions_take_turns(void **state)
{
	static uint8_t bytes[16 * 1024];
	struct rig_peer peer = rig_guest_connects(1000, 80);
	uint64_t n_to_guest = 0, n_from_guest = 0, n_put = 0;

	(void)state;
	for (int i = 0; i < 40; i++) {
		static struct rig_packet packet;
		uint32_t n_used = 0;

		while (n_put < n_from_guest + 8 * sizeof(bytes)) {
			struct packet_header header = rig_header(&peer, PACKET_OP_RW);

			header.len = sizeof(bytes);
			rig_put(&header, bytes);
			n_put += sizeof(bytes);
		}
		assert_true(send(peer.host, bytes, sizeof(bytes), MSG_DONTWAIT) > 0 ||
			    errno == EAGAIN);
		rig_sleep(250);
		n_from_guest += rig_n_sent() * sizeof(bytes);
		for (; rig_take(&packet); n_used++)
			n_to_guest += packet.header.op == PACKET_OP_RW ? packet.header.len : 0;
		peer.fwd_cnt = (uint32_t)n_to_guest;
		rig_offer(n_used, 4096);
		while (recv(peer.host, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
			;
	}
	/* Ten seconds of 64 KiB each, and what the bucket held. */
	assert_in_range(n_from_guest + n_to_guest, 10 * 65536, 12 * 65536);
	assert_true(n_to_guest > 3 * 65536);
	assert_true(n_from_guest > 3 * 65536);
	rig_close_host(&peer);
}

static void test_a_limit_changes_while_bytes_wait_for_it(void **state)
{
	static uint8_t bytes[200000];
	struct rig_peer peer = rig_guest_connects(1000, 80);
	static struct rig_packet packet;
	uint32_t n = 0;

	(void)state;
	rig_host_writes(&peer, bytes, sizeof(bytes));
	rig_run();
	while (rig_take(&packet))
		n += packet.header.op == PACKET_OP_RW ? packet.header.len : 0;
	assert_int_equal(n, 65536);
	rig_offer(64, 4096);
	rig_limit(&(struct rig_options){0});
	rig_run();
	while (rig_take(&packet))
		n += packet.header.op == PACKET_OP_RW ? packet.header.len : 0;
	assert_int_equal(n, sizeof(bytes));
	rig_close_host(&peer);
}

static void test_a_port_is_denied_from_now_on(void **state)
{
	(void)state;
	assert_true(is_let_in(22));
	rig_limit(&(struct rig_options){.incoming = {{22, 22, true}}, .n_incoming = 1});
	assert_false(is_let_in(22));
	rig_limit(&(struct rig_options){0});
	assert_true(is_let_in(22));
}

/*
 * A socket of AF_VSOCK, which not every host has: it does not say EPOLLHUP when its other
 * end is closed. A unix socket stands in whose own events nobody hears any more.
 */
static void hear_as_vsock(const struct rig_peer *peer)
{
	struct connection *connection = connection_find(
		&rig.device.connections, 2, peer->guest_port, peer->host_port, PACKET_TYPE_STREAM);
	uint64_t event;

	assert_non_null(connection);
	epoll_ctl(rig.epoll, EPOLL_CTL_DEL, connection->fd, NULL);
	event = device_event(DEVICE_EVENT_CONNECTION,
			     connection_index(&rig.device.connections, connection),
			     connection->generation);
	assert_true(device_note_event(&rig.device, event, EPOLLIN | EPOLLOUT | EPOLLRDHUP));
	rig_run();
}

static void expect_shutdown(const struct rig_peer *peer, uint32_t flags)
{
	assert_int_equal(rig_expect(peer, PACKET_OP_SHUTDOWN)->header.flags, flags);
}

static struct rig_peer open_vsock(void)
{
	struct rig_peer peer = be_asked_directly(22);

	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	return peer;
}

static void test_a_guest_hears_that_a_program_closed_whose_socket_does_not_hang_up(void **state)
{
	struct rig_peer peer = open_vsock();

	(void)state;
	rig_host_writes(&peer, "bye", 3);
	rig_close_host(&peer);
	hear_as_vsock(&peer);
	rig_expect(&peer, PACKET_OP_RW);
	expect_shutdown(&peer, PACKET_SHUTDOWN_BOTH);
	rig_say(&peer, PACKET_OP_RST, 0);
	assert_true(rig_is_closed(peer.endpoint));
}

static void test_half_a_close_is_told_as_half_of_one_and_the_other_half_later(void **state)
{
	struct rig_peer peer = open_vsock();

	(void)state;
	assert_int_equal(shutdown(peer.host, SHUT_WR), 0);
	hear_as_vsock(&peer);
	expect_shutdown(&peer, PACKET_SHUTDOWN_SEND);
	rig_rw(&peer, "answer", 6);
	rig_host_reads(&peer, "answer", 6);
	hear_as_vsock(&peer); /* it was read */
	rig_rw(&peer, "more", 4);
	rig_host_reads(&peer, "more", 4);
	rig_expect_no_packet();
	/* Nothing shows but that something has changed. */
	rig_close_host(&peer);
	hear_as_vsock(&peer);
	expect_shutdown(&peer, PACKET_SHUTDOWN_BOTH);
}

#define AS(name, start) cmocka_unit_test_setup_teardown(name, start, tear_down)
#define TEST(name)	AS(name, set_up)
#define PATIENT(name)	AS(name, set_up_patient)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_direct_connection_has_no_lines_before_the_stream),
		TEST(test_a_direct_connection_is_closed_when_the_guest_refuses),
		AS(test_a_quiet_listener_gives_no_ok, set_up_quiet),
		PATIENT(test_a_guest_that_refuses_is_asked_again_in_time),
		PATIENT(test_a_guest_is_not_asked_more_often_than_it_may_be),
		PATIENT(test_refusing_more_than_once_costs_one_turn),
		PATIENT(test_a_host_program_that_leaves_while_it_waits_ends_the_asking),
		TEST(test_the_guest_is_answered_when_the_socket_is_connected),
		TEST(test_a_socket_that_does_not_get_there_in_time_is_given_up),
		TEST(test_a_socket_that_fails_on_its_way_is_a_refusal),
		TEST(test_a_guest_may_give_up_a_socket_that_is_on_its_way),
		AS(test_what_is_denied_is_not_reached, set_up_denied),
		AS(test_where_some_are_allowed_no_others_are, set_up_allowed),
		AS(test_bytes_to_the_guest_wait_for_their_second, set_up_slow),
		AS(test_what_is_no_byte_does_not_wait_for_its_second, set_up_slow),
		AS(test_bytes_of_the_guest_wait_for_their_second, set_up_slow),
		AS(test_bytes_of_the_guest_wait_no_longer_when_nothing_goes_to_it, set_up_slow),
		AS(test_the_two_directions_take_turns, set_up_slow),
		AS(test_a_limit_changes_while_bytes_wait_for_it, set_up_slow),
		TEST(test_a_port_is_denied_from_now_on),
		TEST(test_a_guest_hears_that_a_program_closed_whose_socket_does_not_hang_up),
		TEST(test_half_a_close_is_told_as_half_of_one_and_the_other_half_later),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
