/* SPDX-License-Identifier: Apache-2.0 */

/* Sockets of other kinds than the uds-path: no handshake, no OK, slow to connect; and waiting. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>

#include "tests/unit/device_rig.h"

static int set_up(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){0});
	rig_offer(64, 4096);
	return 0;
}

static int set_up_patient(void **state)
{
	set_up(state);
	rig.device.n_retries = 3;
	return 0;
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
	rig.device.is_quiet = true;
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

#define TEST(name)    cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define PATIENT(name) cmocka_unit_test_setup_teardown(name, set_up_patient, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_direct_connection_has_no_lines_before_the_stream),
		TEST(test_a_direct_connection_is_closed_when_the_guest_refuses),
		TEST(test_a_quiet_listener_gives_no_ok),
		PATIENT(test_a_guest_that_refuses_is_asked_again_in_time),
		PATIENT(test_a_guest_is_not_asked_more_often_than_it_may_be),
		PATIENT(test_refusing_more_than_once_costs_one_turn),
		PATIENT(test_a_host_program_that_leaves_while_it_waits_ends_the_asking),
		TEST(test_the_guest_is_answered_when_the_socket_is_connected),
		TEST(test_a_socket_that_does_not_get_there_in_time_is_given_up),
		TEST(test_a_socket_that_fails_on_its_way_is_a_refusal),
		TEST(test_a_guest_may_give_up_a_socket_that_is_on_its_way),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
