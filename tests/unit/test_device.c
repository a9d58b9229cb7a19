/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/device_rig.h"

/* Ports that the device gives to host programs. */
#define FIRST_PORT (UINT32_C(1) << 30)
#define LAST_PORT  ((UINT32_C(1) << 31) - 1)

static int set_up(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){0});
	return 0;
}

static int set_up_small(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){.n_connections = 2, .n_handshakes = 2});
	return 0;
}

static int set_up_narrow(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){.buffer_size = 4096});
	return 0;
}

static int set_up_wide(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){.buffer_size = 256 * 1024});
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_end();
	return 0;
}

/* ---- opening ---- */

static void test_a_request_is_answered_once_the_front_has_connected(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(4, 4096);
	peer = rig_ask(1000, 80);
	rig_expect_no_packet();
	assert_int_equal(rig_n_sent(), 1);
	rig_connected(&peer);
	rig_run();
	rig_expect(&peer, PACKET_OP_RESPONSE);
	rig_expect_no_packet();
	rig_close_host(&peer);
}

static void test_a_request_that_the_front_refuses_gets_rst_and_frees_its_entry(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(4, 4096);
	peer = rig_ask(1000, 80);
	rig_refused(&peer, -ECONNREFUSED);
	rig_run();
	rig_expect(&peer, PACKET_OP_RST);
	rig_expect_no_packet();
	assert_int_equal(rig.device.connections.n_used, 0);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CLOSED, NULL));
}

static void test_a_request_beyond_the_limit_gets_rst_until_another_connection_ends(void **state)
{
	struct rig_peer first, second, third = {.guest_port = 1002, .host_port = 80};
	struct rig_told told;

	(void)state;
	rig_offer(8, 4096);
	first = rig_guest_connects(1000, 80);
	second = rig_guest_connects(1001, 80);
	rig_say(&third, PACKET_OP_REQUEST, 0);
	rig_expect(&third, PACKET_OP_RST);
	rig_expect_report(REPORT_CONNECTION_LIMIT, &told);
	assert_int_equal(told.values[1], 2);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECT, NULL));

	rig_say(&first, PACKET_OP_RST, 0);
	assert_true(rig_is_closed(first.endpoint));
	third = rig_guest_connects(1002, 80);
	rig_close_host(&first);
	rig_close_host(&second);
	rig_close_host(&third);
}

static void test_a_host_program_reads_ok_only_when_the_guest_has_answered(void **state)
{
	struct rig_peer peer;
	struct rig_told told;
	char line[32];

	(void)state;
	rig_offer(4, 4096);
	peer = rig_host_asks(5000);
	assert_in_range(peer.host_port, FIRST_PORT, LAST_PORT);
	rig_expect_told(VSOCKD__ENVELOPE__BODY_OPENED, &told);
	assert_int_equal(told.values[0], peer.endpoint);
	assert_int_equal(told.values[1], 5000);
	assert_int_equal(told.values[2], peer.host_port);
	rig_host_reads_nothing(&peer);

	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	snprintf(line, sizeof(line), "OK %u\n", peer.host_port);
	rig_host_reads(&peer, line, strlen(line));
	rig_host_reads_nothing(&peer);
	rig_expect_no_packet();
	rig_close_host(&peer);
}

static void test_host_ports_of_one_guest_port_differ(void **state)
{
	struct rig_peer first, second;

	(void)state;
	rig_offer(4, 4096);
	first = rig_host_asks(5000);
	second = rig_host_asks(5000);
	assert_int_not_equal(first.host_port, second.host_port);
	rig_close_host(&first);
	rig_close_host(&second);
}

static void test_a_handshake_may_come_byte_by_byte(void **state)
{
	static const char line[] = "cOnNeCt 007\r\n";
	struct rig_peer peer = {.guest_port = 7};

	(void)state;
	rig_offer(4, 4096);
	peer.endpoint = rig_accept(&peer.host);
	for (size_t i = 0; i < sizeof(line) - 1; i++) {
		rig_run();
		rig_expect_no_packet();
		rig_host_writes(&peer, line + i, 1);
	}
	rig_run();
	peer.host_port = rig.device.connections.next_port - 1;
	rig_expect(&peer, PACKET_OP_REQUEST);
	rig_close_host(&peer);
}

static void test_a_malformed_handshake_closes_the_socket_without_a_word(void **state)
{
	static const char *const lines[] = {"GET / HTTP/1.1\r\n", "CONNECT -1\n",
					    "CONNECT 4294967296\n",
					    "CONNECT 00000000000000000000000000000007\n"};

	(void)state;
	rig_offer(4, 4096);
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		struct rig_peer peer = {0};
		struct rig_told told;

		peer.endpoint = rig_accept(&peer.host);
		rig_host_writes(&peer, lines[i], strlen(lines[i]));
		rig_run();
		rig_expect_report(REPORT_HANDSHAKE_FAILED, &told);
		assert_int_equal(told.values[1], peer.endpoint);
		assert_int_equal(told.values[2], REPORT_HANDSHAKE_MALFORMED);
		assert_true(rig_is_closed(peer.endpoint));
		rig_expect_no_packet();
		assert_int_equal(rig.device.connections.n_used, 0);
		rig_close_host(&peer);
	}
}

static void test_a_host_program_may_die_at_every_byte_of_the_handshake(void **state)
{
	static const char line[] = "CONNECT 4294967295\n";

	(void)state;
	rig_offer(64, 4096);
	for (size_t len = 0; len < sizeof(line); len++) {
		static struct rig_packet packet;
		struct rig_peer peer = {0};

		peer.endpoint = rig_accept(&peer.host);
		if (len > 0)
			rig_host_writes(&peer, line, len);
		rig_close_host(&peer);
		rig_run();
		assert_true(rig_is_closed(peer.endpoint));
		/* Whoever saw a REQUEST sees its RST. */
		if (rig_take(&packet) && packet.header.op == PACKET_OP_REQUEST)
			assert_true(rig_take(&packet));
		if (packet.header.op != 0)
			assert_int_equal(packet.header.op, PACKET_OP_RST);
		rig_expect_no_packet();
		assert_int_equal(rig.device.connections.n_used, 0);
		assert_int_equal(rig.device.connections.n_handshakes, 0);
		rig_expect_report(REPORT_HANDSHAKE_FAILED, NULL);
	}
}

static void test_a_handshake_has_five_seconds_while_the_rings_run(void **state)
{
	struct rig_peer peer = {0};
	struct rig_told told;

	(void)state;
	peer.endpoint = rig_accept(&peer.host);
	rig_host_writes(&peer, "CONN", 4);
	rig_run();
	rig_stop_rings();
	rig_sleep(60000);
	assert_false(rig_is_closed(peer.endpoint));
	assert_int_equal(device_timeout(&rig.device), -1);
	rig_close_host(&peer);
	rig_end();

	rig_start(&(struct rig_options){0});
	peer.endpoint = rig_accept(&peer.host);
	rig_host_writes(&peer, "CONN", 4);
	rig_run();
	assert_int_equal(device_timeout(&rig.device), CONNECTION_HANDSHAKE_MS);
	rig_sleep(CONNECTION_HANDSHAKE_MS - 1);
	assert_false(rig_is_closed(peer.endpoint));
	rig_sleep(1);
	assert_true(rig_is_closed(peer.endpoint));
	rig_host_reads_end(&peer);
	rig_expect_report(REPORT_HANDSHAKE_FAILED, &told);
	assert_int_equal(told.values[2], REPORT_HANDSHAKE_TIMEOUT);
	rig_close_host(&peer);
}

static void test_handshakes_beyond_the_limit_are_closed_at_once(void **state)
{
	struct rig_peer peers[3] = {0};

	(void)state;
	rig_offer(4, 4096);
	for (size_t i = 0; i < 3; i++)
		peers[i].endpoint = rig_accept(&peers[i].host);
	rig_run();
	assert_false(rig_is_closed(peers[0].endpoint));
	assert_false(rig_is_closed(peers[1].endpoint));
	assert_true(rig_is_closed(peers[2].endpoint));
	rig_host_reads_end(&peers[2]);
	rig_expect_report(REPORT_HANDSHAKE_LIMIT, NULL);

	/* One that is over makes room. */
	rig_host_writes(&peers[0], "CONNECT 1\n", 10);
	rig_run();
	rig_close_host(&peers[2]);
	peers[2].endpoint = rig_accept(&peers[2].host);
	rig_run();
	assert_false(rig_is_closed(peers[2].endpoint));
	for (size_t i = 0; i < 3; i++)
		rig_close_host(&peers[i]);
}

static void test_the_connect_timer_starts_when_the_guest_can_see_the_request(void **state)
{
	struct rig_peer peer = {.guest_port = 9};
	struct rig_told told;

	(void)state;
	peer.endpoint = rig_accept(&peer.host);
	rig_host_writes(&peer, "CONNECT 9\n", 10);
	rig_run();
	rig_sleep(60000); /* no rx buffer: nobody could have answered */
	assert_false(rig_is_closed(peer.endpoint));

	rig_offer(1, 4096);
	rig_run();
	peer.host_port = rig.device.connections.next_port - 1;
	rig_expect(&peer, PACKET_OP_REQUEST);
	rig_sleep(CONNECTION_CONNECT_MS - 1);
	assert_false(rig_is_closed(peer.endpoint));
	rig_sleep(1);
	rig_host_reads_end(&peer);
	rig_expect_report(REPORT_HANDSHAKE_FAILED, &told);
	assert_int_equal(told.values[2], REPORT_HANDSHAKE_NO_ANSWER);

	/* The front counts it until the guest is told: it may not die in between. */
	assert_false(rig_is_closed(peer.endpoint));
	rig_offer(1, 4096);
	rig_run();
	rig_expect(&peer, PACKET_OP_RST);
	assert_true(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_a_host_program_that_left_before_its_request_costs_no_packet(void **state)
{
	struct rig_peer peer = {0};

	(void)state;
	peer.endpoint = rig_accept(&peer.host);
	rig_host_writes(&peer, "CONNECT 9\n", 10);
	rig_run();
	rig_close_host(&peer);
	rig_run();
	rig_offer(4, 4096);
	rig_run();
	rig_expect_no_packet();
	assert_true(rig_is_closed(peer.endpoint));
	assert_int_equal(rig.device.connections.n_used, 0);
}

static void test_a_guest_that_refuses_closes_the_host_program(void **state)
{
	struct rig_peer peer;
	struct rig_told told;

	(void)state;
	rig_offer(4, 4096);
	peer = rig_host_asks(9);
	rig_say(&peer, PACKET_OP_RST, 0);
	rig_host_reads_end(&peer);
	assert_true(rig_is_closed(peer.endpoint));
	rig_expect_report(REPORT_HANDSHAKE_FAILED, &told);
	assert_int_equal(told.values[2], REPORT_HANDSHAKE_REFUSED);
	rig_expect_no_packet();
	rig_close_host(&peer);
}

static void test_a_guest_that_gives_up_ends_the_request(void **state)
{
	static const enum packet_op ops[] = {PACKET_OP_RST, PACKET_OP_SHUTDOWN, PACKET_OP_RW,
					     PACKET_OP_CREDIT_REQUEST};

	(void)state;
	rig_offer(8, 4096);
	for (size_t i = 0; i < 4; i++) {
		struct rig_peer peer = rig_ask(1000, 80);

		rig_say(&peer, ops[i], PACKET_SHUTDOWN_BOTH);
		if (ops[i] != PACKET_OP_RST)
			rig_expect(&peer, PACKET_OP_RST);
		/* The answer of the front is too late: its socket is closed again. */
		rig_connected(&peer);
		rig_run();
		rig_expect_no_packet();
		assert_true(rig_is_closed(peer.endpoint));
		rig_host_reads_end(&peer);
		assert_int_equal(rig.device.connections.n_used, 0);
		rig_close_host(&peer);
	}
}

static void test_a_late_refusal_of_an_abandoned_request_is_silent(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(4, 4096);
	peer = rig_ask(1000, 80);
	rig_say(&peer, PACKET_OP_RST, 0);
	assert_int_equal(rig.device.connections.n_used, 1);
	rig_refused(&peer, -ETIMEDOUT);
	rig_run();
	rig_expect_no_packet();
	assert_int_equal(rig.device.connections.n_used, 0);
}

static void test_a_pair_of_ports_can_be_asked_for_again_at_once(void **state)
{
	struct rig_peer old, peer;

	(void)state;
	rig_offer(8, 4096);
	old = rig_ask(1000, 80);
	rig_say(&old, PACKET_OP_RST, 0);
	peer = rig_ask(1000, 80);
	assert_int_not_equal(old.request, peer.request);
	rig_connected(&old);
	rig_connected(&peer);
	rig_run();
	rig_expect(&peer, PACKET_OP_RESPONSE);
	rig_expect_no_packet();
	assert_true(rig_is_closed(old.endpoint));
	assert_false(rig_is_closed(peer.endpoint));
	rig_rw(&peer, "x", 1);
	rig_host_reads(&peer, "x", 1);
	rig_close_host(&old);
	rig_close_host(&peer);
}

static void test_stream_bytes_behind_the_handshake_reach_the_guest_first(void **state)
{
	static const char line[] = "CONNECT 9\nGET /index\n";
	struct rig_peer peer = {.guest_port = 9, .buf_alloc = 4};
	const struct rig_packet *packet;
	char got[32];
	size_t n = 0;

	(void)state;
	/* Three bytes of room in each buffer, four of credit. */
	rig_offer(1, 4096);
	rig_offer(1, PACKET_HEADER_LEN); /* no use for stream bytes */
	rig_offer(8, PACKET_HEADER_LEN + 3);
	peer.endpoint = rig_accept(&peer.host);
	rig_host_writes(&peer, line, sizeof(line) - 1);
	rig_run();
	peer.host_port = rig.device.connections.next_port - 1;
	rig_expect(&peer, PACKET_OP_REQUEST);
	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	rig_host_writes(&peer, " more", 5);
	rig_run();

	while (n < 16) {
		static struct rig_packet any;

		if (!rig_take(&any)) {
			rig_offer(4, PACKET_HEADER_LEN + 3);
			peer.buf_alloc = 1024 * 16;
			peer.fwd_cnt = (uint32_t)n;
			rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
			continue;
		}
		packet = &any;
		if (packet->used_len == 0 || packet->header.op != PACKET_OP_RW)
			continue;
		assert_in_range(packet->header.len, 1, 3);
		memcpy(got + n, packet->payload, packet->header.len);
		n += packet->header.len;
	}
	assert_memory_equal(got, "GET /index\n more", 16);
	rig_close_host(&peer);
}

static void test_stream_bytes_behind_the_handshake_wait_for_credit(void **state)
{
	struct rig_peer peer = {.guest_port = 9, .buf_alloc = 4};

	(void)state;
	rig_offer(8, 4096);
	peer.endpoint = rig_accept(&peer.host);
	rig_host_writes(&peer, "CONNECT 9\nGET /index\n", 21);
	rig_run();
	peer.host_port = rig.device.connections.next_port - 1;
	rig_expect(&peer, PACKET_OP_REQUEST);
	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	assert_int_equal(rig_expect(&peer, PACKET_OP_RW)->header.len, 4);
	rig_expect(&peer, PACKET_OP_CREDIT_REQUEST);
	rig_expect_no_packet();
	peer.fwd_cnt = 4;
	peer.buf_alloc = 100;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	assert_memory_equal(rig_expect(&peer, PACKET_OP_RW)->payload, "/index\n", 7);
	rig_close_host(&peer);
}

/* ---- stream bytes ---- */

static void test_bytes_of_the_guest_reach_the_host_program(void **state)
{
	static uint8_t bytes[PACKET_PAYLOAD_MAX];
	struct rig_peer peer;

	(void)state;
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = rig_byte(1, i);
	rig_offer(4, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_rw(&peer, bytes, sizeof(bytes));
	rig_host_reads(&peer, bytes, sizeof(bytes));
	assert_int_equal(rig_n_sent(), 2);
	rig_close_host(&peer);
}

static void test_bytes_of_the_host_program_reach_the_guest(void **state)
{
	static uint8_t bytes[20000];
	struct rig_peer peer;
	uint32_t done = 0;

	(void)state;
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = rig_byte(2, i);
	rig_offer(1, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_host_writes(&peer, bytes, sizeof(bytes));
	rig_offer(32, 4096);
	rig_run();
	while (done < sizeof(bytes)) {
		const struct rig_packet *packet = rig_expect(&peer, PACKET_OP_RW);

		assert_in_range(packet->header.len, 1, 4096 - PACKET_HEADER_LEN);
		assert_memory_equal(packet->payload, bytes + done, packet->header.len);
		done += packet->header.len;
	}
	/* Full buffers, not one packet for each write of anybody. */
	assert_in_range(rig.rings[RING_RX].used_idx, 1, 1 + 6);
	rig_close_host(&peer);
}

static void test_header_and_payload_may_lie_over_descriptors_as_the_driver_likes(void **state)
{
	uint8_t bytes[PACKET_HEADER_LEN + 20];
	struct packet_header header;
	struct rig_peer peer;

	(void)state;
	rig_offer(4, 4096);
	peer = rig_guest_connects(1000, 80);
	header = rig_header(&peer, PACKET_OP_RW);
	header.len = 20;
	memcpy(bytes, &header, PACKET_HEADER_LEN);
	for (uint32_t split = 1; split < sizeof(bytes); split++) {
		struct rig_buffer buffers[3];
		uint32_t second = split + (uint32_t)(sizeof(bytes) - split) / 2;
		uint64_t place = rig_place(sizeof(bytes));

		for (uint32_t i = 0; i < 20; i++)
			bytes[PACKET_HEADER_LEN + i] = rig_byte(split, i);
		memcpy(rig_at(place), bytes, sizeof(bytes));
		buffers[0] = (struct rig_buffer){place, split, 0};
		buffers[1] = (struct rig_buffer){place + split, second - split, 0};
		buffers[2] =
			(struct rig_buffer){place + second, (uint32_t)sizeof(bytes) - second, 0};
		rig_put_chain(RING_TX, buffers, 3);
		rig_run();
		rig_host_reads(&peer, bytes + PACKET_HEADER_LEN, 20);
	}
	rig_host_reads_nothing(&peer);
	rig_close_host(&peer);
}

static void test_bytes_behind_len_are_not_part_of_the_stream(void **state)
{
	struct rig_peer peer;
	struct rig_buffer buffers[2];
	struct packet_header header;

	(void)state;
	rig_offer(4, 4096);
	peer = rig_guest_connects(1000, 80);
	header = rig_header(&peer, PACKET_OP_RW);
	header.len = 3;
	buffers[0] = (struct rig_buffer){rig_place(PACKET_HEADER_LEN), PACKET_HEADER_LEN, 0};
	buffers[1] = (struct rig_buffer){rig_place(9), 9, 0};
	memcpy(rig_at(buffers[0].guest_address), &header, PACKET_HEADER_LEN);
	memcpy(rig_at(buffers[1].guest_address), "abcdefghi", 9);
	rig_put_chain(RING_TX, buffers, 2);
	rig_rw(&peer, "xyz", 3);
	rig_host_reads(&peer, "abcxyz", 6);
	rig_host_reads_nothing(&peer);
	rig_close_host(&peer);
}

static void test_packets_of_two_connections_in_one_round_are_not_mixed(void **state)
{
	struct packet_header first_header, second_header;
	struct rig_peer first, second;

	(void)state;
	rig_offer(4, 4096);
	first = rig_guest_connects(1000, 80);
	second = rig_guest_connects(1001, 80);
	first_header = rig_header(&first, PACKET_OP_RW);
	second_header = rig_header(&second, PACKET_OP_RW);
	first_header.len = second_header.len = 1;
	for (uint8_t i = 0; i < 30; i++) {
		uint8_t other = (uint8_t)(i + 100);

		rig_put(&first_header, &i);
		rig_put(&second_header, &other);
	}
	rig_run();
	for (uint8_t i = 0; i < 30; i++) {
		uint8_t other = (uint8_t)(i + 100);

		rig_host_reads(&first, &i, 1);
		rig_host_reads(&second, &other, 1);
	}
	rig_close_host(&first);
	rig_close_host(&second);
}

/* ---- credit ---- */

static void test_the_guest_never_gets_more_bytes_than_it_has_room_for(void **state)
{
	static uint8_t bytes[10000];
	struct rig_peer peer = {.guest_port = 1000, .host_port = 80, .buf_alloc = 3000};
	struct rig_told told;

	(void)state;
	rig_offer(64, 4096);
	/* The REQUEST itself says how much. */
	rig_say(&peer, PACKET_OP_REQUEST, 0);
	rig_expect_told(VSOCKD__ENVELOPE__BODY_CONNECT, &told);
	peer.request = (uint32_t)told.values[0];
	rig_connected(&peer);
	rig_host_writes(&peer, bytes, sizeof(bytes));
	rig_run();
	rig_expect(&peer, PACKET_OP_RESPONSE);
	assert_int_equal(rig_expect(&peer, PACKET_OP_RW)->header.len, 3000);
	rig_expect(&peer, PACKET_OP_CREDIT_REQUEST);
	rig_expect_no_packet();

	/* Credit that rides on stream bytes counts like any other. */
	peer.fwd_cnt = 1000;
	rig_rw(&peer, "x", 1);
	assert_int_equal(rig_expect(&peer, PACKET_OP_RW)->header.len, 1000);
	rig_expect(&peer, PACKET_OP_CREDIT_REQUEST);
	rig_expect_no_packet();

	/* A buffer that shrinks below what is in flight gives none. */
	peer.fwd_cnt = 1500;
	peer.buf_alloc = 1000;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	while (rig.rings[RING_RX].used_idx != rig_used_index(RING_RX))
		rig_expect(&peer, PACKET_OP_CREDIT_REQUEST);
	rig_close_host(&peer);
}

static void test_the_guest_never_has_more_unread_packets_than_it_bears(void **state)
{
	struct rig_peer peer;
	uint32_t n = 0;

	(void)state;
	rig_offer(64, 4096);
	peer = rig_guest_connects(1000, 80);
	peer.buf_alloc = 8 * CREDIT_PACKET_OVERHEAD;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	for (uint32_t i = 0; i < 50; i++) {
		rig_host_writes(&peer, "x", 1);
		rig_run();
	}
	while (rig.rings[RING_RX].used_idx != rig_used_index(RING_RX)) {
		static struct rig_packet packet;

		assert_true(rig_take(&packet));
		n += packet.header.op == PACKET_OP_RW;
	}
	assert_int_equal(n, 8);

	/* Asked, the guest says that it has consumed all of them. */
	peer.fwd_cnt = n;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	assert_int_equal(rig_expect(&peer, PACKET_OP_RW)->header.len, 42);
	rig_close_host(&peer);
}

static void test_a_guest_that_consumes_packets_in_silence_is_asked_again(void **state)
{
	static struct rig_packet packet;
	struct rig_peer peer;
	uint32_t n = 0;

	(void)state;
	rig_offer(64, 4096);
	peer = rig_guest_connects(1000, 80);
	peer.buf_alloc = CREDIT_PACKET_OVERHEAD;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_host_writes(&peer, "a", 1);
	rig_run();
	rig_host_writes(&peer, "b", 1);
	rig_run();
	rig_expect(&peer, PACKET_OP_RW);
	rig_expect(&peer, PACKET_OP_CREDIT_REQUEST);
	rig_expect_no_packet();
	assert_int_equal(device_timeout(&rig.device), CONNECTION_CREDIT_MS);
	rig_sleep(CONNECTION_CREDIT_MS);
	rig_expect(&peer, PACKET_OP_CREDIT_REQUEST);

	/* One that never answers is not held back for ever. */
	rig_offer(60, 4096);
	for (uint32_t i = 0; i < 100 && n == 0; i++) {
		rig_sleep(CONNECTION_CREDIT_MS);
		while (rig_take(&packet))
			n += packet.header.op == PACKET_OP_RW;
	}
	assert_int_equal(n, 1);
	rig_close_host(&peer);
}

static void test_a_fwd_cnt_that_lies_is_not_believed(void **state)
{
	static uint8_t bytes[3000];
	struct rig_peer peer;

	(void)state;
	rig_offer(64, 4096);
	peer = rig_guest_connects(1000, 80);
	peer.buf_alloc = 2048;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_host_writes(&peer, bytes, sizeof(bytes));
	rig_run();
	assert_int_equal(rig_expect(&peer, PACKET_OP_RW)->header.len, 2048);
	rig_expect(&peer, PACKET_OP_CREDIT_REQUEST);
	peer.fwd_cnt = 2049; /* was never sent */
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_expect_no_packet();
	rig_expect_report(REPORT_PACKET_DROPPED, NULL);
	peer.fwd_cnt = 2048;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	assert_int_equal(rig_expect(&peer, PACKET_OP_RW)->header.len, 3000 - 2048);
	rig_close_host(&peer);
}

static void test_a_credit_request_is_answered_always(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(16, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_rw(&peer, "abc", 3);
	rig_say(&peer, PACKET_OP_CREDIT_REQUEST, 0);
	assert_int_equal(rig_expect(&peer, PACKET_OP_CREDIT_UPDATE)->header.fwd_cnt, 3);

	/* Half closed as well. */
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_SEND);
	rig_say(&peer, PACKET_OP_CREDIT_REQUEST, 0);
	rig_expect(&peer, PACKET_OP_CREDIT_UPDATE);
	rig_expect_no_packet();
	rig_close_host(&peer);
}

static void test_room_is_told_once_and_by_any_packet(void **state)
{
	static uint8_t bytes[40000];
	struct rig_peer peer;

	(void)state;
	rig_offer(16, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_rw(&peer, bytes, sizeof(bytes)); /* more than half of our buffer */
	assert_int_equal(rig_expect(&peer, PACKET_OP_CREDIT_UPDATE)->header.fwd_cnt, 40000);
	rig_host_reads(&peer, bytes, sizeof(bytes));
	rig_rw(&peer, "x", 1);
	rig_expect_no_packet();

	/* Stream bytes tell it as well, so half of the buffer counts from there. */
	rig_rw(&peer, bytes, 30000);
	rig_expect_no_packet();
	rig_host_writes(&peer, "y", 1);
	rig_run();
	assert_int_equal(rig_expect(&peer, PACKET_OP_RW)->header.fwd_cnt, 70001);
	rig_rw(&peer, bytes, 30000);
	rig_expect_no_packet();
	rig_close_host(&peer);
}

static void test_the_guest_learns_of_room_when_the_host_program_reads_on(void **state)
{
	static uint8_t bytes[64 * 1024];
	const struct rig_packet *packet;
	struct rig_peer peer;
	uint32_t total;

	(void)state;
	rig_offer(64, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_narrow(&peer);
	total = rig_choke(&peer, 3, 32 * 1024);
	while (rig.rings[RING_RX].used_idx != rig_used_index(RING_RX))
		rig_expect(&peer, PACKET_OP_CREDIT_UPDATE);
	assert_true(total <= sizeof(bytes));
	for (uint32_t i = 0; i < total; i++)
		bytes[i] = rig_byte(3, i);
	rig_host_reads(&peer, bytes, total);
	rig_run();
	packet = rig_expect(&peer, PACKET_OP_CREDIT_UPDATE);
	assert_in_range(total - packet->header.fwd_cnt, 0, 32 * 1024);
	rig_close_host(&peer);
}

static void test_a_guest_may_fill_our_buffer_to_the_last_byte_and_no_further(void **state)
{
	struct rig_peer peer;
	struct rig_told told;
	uint32_t total;
	uint8_t bytes[8192];

	(void)state;
	rig_offer(64, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_narrow(&peer);
	total = rig_choke(&peer, 4, 4096);
	while (rig.rings[RING_RX].used_idx != rig_used_index(RING_RX))
		rig_expect(&peer, PACKET_OP_CREDIT_UPDATE);
	rig_rw(&peer, "x", 1);
	rig_expect(&peer, PACKET_OP_RST);
	rig_expect_no_packet();
	rig_expect_report(REPORT_PEER_MISBEHAVED, &told);
	assert_int_equal(told.values[1], 80);
	assert_int_equal(told.values[2], 1000);
	assert_true(rig_is_closed(peer.endpoint));
	assert_int_equal(rig.device.connections.n_used, 0);
	assert_int_equal(rig_n_chunks(), 0);

	/* What it sent by then and the socket took is still there to read. */
	for (uint32_t i = 0; i < total - 4096; i++)
		bytes[i % sizeof(bytes)] = rig_byte(4, i);
	assert_true(total - 4096 <= sizeof(bytes));
	rig_host_reads(&peer, bytes, total - 4096);
	rig_host_reads_end(&peer);
	rig_close_host(&peer);
}

/* ---- what a guest may send, and what answers it ---- */

static void put_raw(const void *bytes, uint32_t len, uint16_t flags)
{
	struct rig_buffer buffer = {rig_place(len), len, flags};

	memcpy(rig_at(buffer.guest_address), bytes, len);
	rig_put_chain(RING_TX, &buffer, 1);
	rig_run();
}

static void expect_drop(void)
{
	static uint64_t before;

	if (rig.device.n_dropped == 1)
		before = 0;
	assert_int_equal(rig.device.n_dropped, before + 1);
	before = rig.device.n_dropped;
	rig_expect_no_packet();
	assert_int_equal(rig_n_sent(), 1);
}

static void test_packets_of_another_source_are_dropped(void **state)
{
	static const uint64_t cids[] = {0, 1, 2, 43, RIG_CID | UINT64_C(1) << 32, UINT64_MAX};
	struct rig_peer peer = {.guest_port = 1000, .host_port = 80};

	(void)state;
	rig_offer(16, 4096);
	for (size_t i = 0; i < sizeof(cids) / sizeof(cids[0]); i++)
		for (uint16_t op = 0; op < 9; op++) {
			struct packet_header header = rig_header(&peer, PACKET_OP_REQUEST);

			header.src_cid = cids[i];
			header.op = op;
			rig_send(&header, NULL);
			expect_drop();
		}
	assert_int_equal(rig.device.connections.n_used, 0);
}

static void test_a_request_to_a_cid_that_no_guest_can_have_is_refused_in_its_name(void **state)
{
	static const uint64_t cids[] = {0,	    1,		RIG_CID,
					UINT32_MAX, UINT64_MAX, UINT64_C(0x100000002)};
	struct rig_peer peer = {.guest_port = 1000, .host_port = 80};

	(void)state;
	rig_offer(64, 4096);
	for (size_t i = 0; i < sizeof(cids) / sizeof(cids[0]); i++) {
		struct packet_header header = rig_header(&peer, PACKET_OP_REQUEST);

		header.dst_cid = cids[i];
		rig_send(&header, NULL);
		rig_expect_rst(cids[i], 80, 1000, PACKET_TYPE_STREAM);
		assert_int_equal(rig_n_sent(), 1);
		for (uint16_t op = 0; op < 9; op++) {
			header.op = op;
			if (op == PACKET_OP_REQUEST)
				continue;
			rig_send(&header, NULL);
			expect_drop();
		}
	}
}

static void test_a_packet_of_an_unknown_type_gets_rst_of_its_type(void **state)
{
	static const uint16_t types[] = {0, PACKET_TYPE_SEQPACKET, 3, UINT16_MAX};
	struct rig_peer peer;

	(void)state;
	rig_offer(64, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_n_sent();
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		for (uint16_t op = 0; op < 9; op++) {
			struct packet_header header = rig_header(&peer, PACKET_OP_RW);

			header.type = types[i];
			header.op = op;
			rig_send(&header, NULL);
			if (op != PACKET_OP_RST)
				rig_expect_rst(PACKET_HOST_CID, 80, 1000, types[i]);
			rig_expect_no_packet();
			assert_int_equal(rig_n_sent(), 1);
		}
	/* The connection of these ports has another type: it lives on. */
	rig_rw(&peer, "abc", 3);
	rig_host_reads(&peer, "abc", 3);
	rig_close_host(&peer);
}

static void test_a_packet_of_no_connection_gets_rst(void **state)
{
	struct rig_peer peer = {.guest_port = 1000, .host_port = 80};

	(void)state;
	rig_offer(64, 4096);
	for (uint16_t op = 0; op < 20; op++) {
		struct packet_header header = rig_header(&peer, PACKET_OP_RW);

		if (op == PACKET_OP_REQUEST || op == PACKET_OP_RST)
			continue;
		header.op = op;
		header.len = 3;
		rig_send(&header, "abc");
		rig_expect_rst(PACKET_HOST_CID, 80, 1000, PACKET_TYPE_STREAM);
		rig_expect_no_packet();
		assert_int_equal(rig_n_sent(), 1);
	}
}

static void test_rst_is_never_answered(void **state)
{
	struct rig_peer peer = {.guest_port = 1000, .host_port = 80};

	(void)state;
	rig_offer(16, 4096);
	rig_say(&peer, PACKET_OP_RST, 0);
	rig_expect_no_packet();
	peer = rig_guest_connects(1000, 80);
	rig_say(&peer, PACKET_OP_RST, 0);
	rig_say(&peer, PACKET_OP_RST, 0);
	rig_expect_no_packet();
	assert_true(rig_is_closed(peer.endpoint));
	rig_host_reads_end(&peer);
	rig_close_host(&peer);
}

static void test_an_operation_that_means_nothing_is_dropped(void **state)
{
	static const uint16_t ops[] = {PACKET_OP_INVALID, PACKET_OP_RESPONSE, 8, 255, UINT16_MAX};
	struct rig_peer peer;

	(void)state;
	rig_offer(16, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_n_sent();
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		struct packet_header header = rig_header(&peer, PACKET_OP_RW);

		header.op = ops[i];
		rig_send(&header, NULL);
		expect_drop();
	}
	rig_rw(&peer, "abc", 3);
	rig_host_reads(&peer, "abc", 3);
	rig_close_host(&peer);
}

static void test_a_len_beyond_the_buffers_ends_the_connection(void **state)
{
	static const uint32_t lens[] = {
		4, 4096, PACKET_PAYLOAD_MAX, PACKET_PAYLOAD_MAX + 1, INT32_MAX, UINT32_MAX};
	uint8_t bytes[PACKET_HEADER_LEN + 3];

	(void)state;
	rig_offer(64, 4096);
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		struct rig_peer peer = rig_guest_connects(1000, 80);
		struct packet_header header = rig_header(&peer, PACKET_OP_RW);

		rig_rw(&peer, "before", 6);
		header.len = lens[i];
		memcpy(bytes, &header, PACKET_HEADER_LEN);
		memcpy(bytes + PACKET_HEADER_LEN, "abc", 3);
		put_raw(bytes, sizeof(bytes), 0);
		rig_expect(&peer, PACKET_OP_RST);
		rig_expect_no_packet();
		rig_expect_report(REPORT_PEER_MISBEHAVED, NULL);
		assert_true(rig_is_closed(peer.endpoint));
		rig_host_reads(&peer, "before", 6);
		rig_host_reads_end(&peer);
		rig_close_host(&peer);
	}
}

static void test_bytes_before_the_packet_that_ends_a_connection_are_delivered(void **state)
{
	struct packet_header header;
	struct rig_peer peer;

	(void)state;
	rig_offer(4, 4096);
	peer = rig_guest_connects(1000, 80);
	header = rig_header(&peer, PACKET_OP_RW);
	/* Both in one round, as one batch of the same connection. */
	header.len = 4;
	rig_put(&header, "good");
	header.len = 100;
	rig_send(&header, NULL);
	rig_expect(&peer, PACKET_OP_RST);
	rig_host_reads(&peer, "good", 4);
	rig_host_reads_end(&peer);
	rig_close_host(&peer);
}

static void test_a_len_beyond_64k_ends_the_connection_though_the_buffers_hold_it(void **state)
{
	static uint8_t bytes[PACKET_PAYLOAD_MAX + 1];
	struct packet_header header;
	struct rig_peer peer;

	(void)state;
	rig_offer(4, 4096);
	peer = rig_guest_connects(1000, 80);
	header = rig_header(&peer, PACKET_OP_RW);
	header.len = PACKET_PAYLOAD_MAX;
	rig_send(&header, bytes);
	rig_host_reads(&peer, bytes, PACKET_PAYLOAD_MAX);
	header.len = sizeof(bytes);
	rig_send(&header, bytes);
	rig_expect(&peer, PACKET_OP_RST);
	rig_host_reads_end(&peer);
	rig_close_host(&peer);
}

static void test_a_len_beyond_the_buffers_of_a_control_packet_drops_it(void **state)
{
	struct rig_peer peer;
	struct packet_header header;

	(void)state;
	rig_offer(4, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_n_sent();
	header = rig_header(&peer, PACKET_OP_RST);
	header.len = 1;
	rig_send(&header, NULL);
	expect_drop();
	assert_false(rig_is_closed(peer.endpoint));
	/* Nor is a stranger's RW with such a len answered. */
	header.op = PACKET_OP_RW;
	header.src_port = 4;
	rig_send(&header, NULL);
	expect_drop();
	rig_close_host(&peer);
}

static void test_chains_that_hold_no_header_are_given_back(void **state)
{
	struct rig_buffer buffers[2];
	struct rig_peer peer = {.guest_port = 1000, .host_port = 80};
	struct packet_header header = rig_header(&peer, PACKET_OP_REQUEST);

	(void)state;
	rig_offer(4, 4096);
	put_raw(&header, PACKET_HEADER_LEN - 1, 0);
	expect_drop();
	put_raw(&header, 0, 0);
	expect_drop();
	put_raw(&header, PACKET_HEADER_LEN, RIG_WRITE);
	expect_drop();

	/* A buffer for the device has no business behind the header, or before it. */
	for (uint32_t i = 0; i < 2; i++) {
		buffers[i] =
			(struct rig_buffer){rig_place(PACKET_HEADER_LEN), PACKET_HEADER_LEN, 0};
		memcpy(rig_at(buffers[i].guest_address), &header, PACKET_HEADER_LEN);
	}
	buffers[1].flags = RIG_WRITE;
	rig_put_chain(RING_TX, buffers, 2);
	rig_run();
	expect_drop();
	buffers[1].flags = 0;
	buffers[0].flags = RIG_WRITE;
	rig_put_chain(RING_TX, buffers, 2);
	rig_run();
	expect_drop();
	assert_memory_equal(rig_at(buffers[0].guest_address), &header, PACKET_HEADER_LEN);
	assert_int_equal(rig.device.connections.n_used, 0);
}

static void test_bytes_after_the_guest_said_that_it_sends_no_more_end_the_connection(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(4, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_SEND);
	rig_rw(&peer, "abc", 3);
	rig_expect(&peer, PACKET_OP_RST);
	rig_expect_no_packet();
	rig_expect_report(REPORT_PEER_MISBEHAVED, NULL);
	rig_host_reads_end(&peer);
	assert_true(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_a_request_on_a_living_connection_resets_it(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(8, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_say(&peer, PACKET_OP_REQUEST, 0);
	rig_expect(&peer, PACKET_OP_RST);
	rig_expect_no_packet();
	assert_true(rig_is_closed(peer.endpoint));
	rig_host_reads_end(&peer);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECT, NULL));
	rig_close_host(&peer);
	peer = rig_guest_connects(1000, 80);
	rig_close_host(&peer);
}

static void test_a_request_while_the_front_still_connects_resets_it(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(8, 4096);
	peer = rig_ask(1000, 80);
	rig_say(&peer, PACKET_OP_REQUEST, 0);
	rig_expect(&peer, PACKET_OP_RST);
	rig_connected(&peer);
	rig_run();
	rig_expect_no_packet();
	assert_true(rig_is_closed(peer.endpoint));
	assert_int_equal(rig.device.connections.n_used, 0);
	rig_close_host(&peer);
}

static void test_a_request_on_a_closing_connection_replaces_it(void **state)
{
	struct rig_peer old, peer;

	(void)state;
	rig_offer(8, 4096);
	old = rig_guest_connects(1000, 80);
	rig_close_host(&old);
	rig_run();
	rig_expect(&old, PACKET_OP_SHUTDOWN);
	peer = rig_guest_connects(1000, 80);
	rig_expect_no_packet();
	assert_true(rig_is_closed(old.endpoint));
	rig_rw(&peer, "abc", 3);
	rig_host_reads(&peer, "abc", 3);
	rig_close_host(&peer);
}

static void test_a_guest_that_sends_before_it_answered_is_reset(void **state)
{
	static const enum packet_op ops[] = {PACKET_OP_RW, PACKET_OP_SHUTDOWN,
					     PACKET_OP_CREDIT_UPDATE, PACKET_OP_CREDIT_REQUEST,
					     PACKET_OP_INVALID};

	(void)state;
	rig_offer(16, 4096);
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		struct rig_peer peer = rig_host_asks(9);

		rig_say(&peer, ops[i], 0);
		rig_expect(&peer, PACKET_OP_RST);
		rig_host_reads_end(&peer);
		assert_true(rig_is_closed(peer.endpoint));
		rig_close_host(&peer);
	}
}

static void test_bytes_without_length_are_news_of_credit_only(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(8, 4096);
	peer = rig_guest_connects(1000, 80);
	peer.buf_alloc = 0;
	rig_rw(&peer, NULL, 0);
	rig_host_writes(&peer, "abc", 3);
	rig_run();
	rig_expect(&peer, PACKET_OP_CREDIT_REQUEST);
	rig_expect_no_packet();
	peer.buf_alloc = 3;
	rig_rw(&peer, NULL, 0);
	assert_int_equal(rig_expect(&peer, PACKET_OP_RW)->header.len, 3);
	rig_host_reads_nothing(&peer);
	rig_close_host(&peer);
}

#define TEST(name)	  cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define TEST_SMALL(name)  cmocka_unit_test_setup_teardown(name, set_up_small, tear_down)
#define TEST_NARROW(name) cmocka_unit_test_setup_teardown(name, set_up_narrow, tear_down)
#define TEST_WIDE(name)	  cmocka_unit_test_setup_teardown(name, set_up_wide, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_request_is_answered_once_the_front_has_connected),
		TEST(test_a_request_that_the_front_refuses_gets_rst_and_frees_its_entry),
		TEST_SMALL(test_a_request_beyond_the_limit_gets_rst_until_another_connection_ends),
		TEST(test_a_host_program_reads_ok_only_when_the_guest_has_answered),
		TEST(test_host_ports_of_one_guest_port_differ),
		TEST(test_a_handshake_may_come_byte_by_byte),
		TEST(test_a_malformed_handshake_closes_the_socket_without_a_word),
		TEST(test_a_host_program_may_die_at_every_byte_of_the_handshake),
		TEST(test_a_handshake_has_five_seconds_while_the_rings_run),
		TEST_SMALL(test_handshakes_beyond_the_limit_are_closed_at_once),
		TEST(test_the_connect_timer_starts_when_the_guest_can_see_the_request),
		TEST(test_a_host_program_that_left_before_its_request_costs_no_packet),
		TEST(test_a_guest_that_refuses_closes_the_host_program),
		TEST(test_a_guest_that_gives_up_ends_the_request),
		TEST(test_a_late_refusal_of_an_abandoned_request_is_silent),
		TEST(test_a_pair_of_ports_can_be_asked_for_again_at_once),
		TEST(test_stream_bytes_behind_the_handshake_reach_the_guest_first),
		TEST(test_stream_bytes_behind_the_handshake_wait_for_credit),
		TEST(test_bytes_of_the_guest_reach_the_host_program),
		TEST(test_bytes_of_the_host_program_reach_the_guest),
		TEST(test_header_and_payload_may_lie_over_descriptors_as_the_driver_likes),
		TEST(test_bytes_behind_len_are_not_part_of_the_stream),
		TEST(test_packets_of_two_connections_in_one_round_are_not_mixed),
		TEST(test_the_guest_never_gets_more_bytes_than_it_has_room_for),
		TEST(test_the_guest_never_has_more_unread_packets_than_it_bears),
		TEST(test_a_guest_that_consumes_packets_in_silence_is_asked_again),
		TEST(test_a_fwd_cnt_that_lies_is_not_believed),
		TEST(test_a_credit_request_is_answered_always),
		TEST(test_room_is_told_once_and_by_any_packet),
		TEST(test_the_guest_learns_of_room_when_the_host_program_reads_on),
		TEST_NARROW(test_a_guest_may_fill_our_buffer_to_the_last_byte_and_no_further),
		TEST(test_packets_of_another_source_are_dropped),
		TEST(test_a_request_to_a_cid_that_no_guest_can_have_is_refused_in_its_name),
		TEST(test_a_packet_of_an_unknown_type_gets_rst_of_its_type),
		TEST(test_a_packet_of_no_connection_gets_rst),
		TEST(test_rst_is_never_answered),
		TEST(test_an_operation_that_means_nothing_is_dropped),
		TEST(test_a_len_beyond_the_buffers_ends_the_connection),
		TEST(test_bytes_before_the_packet_that_ends_a_connection_are_delivered),
		TEST_WIDE(test_a_len_beyond_64k_ends_the_connection_though_the_buffers_hold_it),
		TEST(test_a_len_beyond_the_buffers_of_a_control_packet_drops_it),
		TEST(test_chains_that_hold_no_header_are_given_back),
		TEST(test_bytes_after_the_guest_said_that_it_sends_no_more_end_the_connection),
		TEST(test_a_request_on_a_living_connection_resets_it),
		TEST(test_a_request_while_the_front_still_connects_resets_it),
		TEST(test_a_request_on_a_closing_connection_replaces_it),
		TEST(test_a_guest_that_sends_before_it_answered_is_reset),
		TEST(test_bytes_without_length_are_news_of_credit_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
