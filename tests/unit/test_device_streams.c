/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/device_rig.h"

static int set_up(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){0});
	return 0;
}

static int set_up_long_rings(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){.num = 4096});
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_end();
	return 0;
}

static struct rig_peer open_one(void)
{
	rig_offer(1, 4096);
	return rig_guest_connects(1000, 80);
}

/* Packets that only speak of credit are of no interest here. */
static const struct rig_packet *next_but_credit(void)
{
	static struct rig_packet packet;

	while (rig_take(&packet))
		if (packet.header.op != PACKET_OP_CREDIT_UPDATE &&
		    packet.header.op != PACKET_OP_CREDIT_REQUEST)
			return &packet;
	return NULL;
}

static const struct rig_packet *expect_op(const struct rig_peer *peer, enum packet_op op)
{
	const struct rig_packet *packet = next_but_credit();

	assert_non_null(packet);
	assert_int_equal(packet->header.op, op);
	assert_int_equal(packet->header.dst_port, peer->guest_port);
	assert_int_equal(packet->header.src_port, peer->host_port);
	return packet;
}

static void expect_shutdown(const struct rig_peer *peer, uint32_t flags)
{
	const struct rig_packet *packet = expect_op(peer, PACKET_OP_SHUTDOWN);

	assert_int_equal(packet->header.flags, flags);
	assert_int_equal(packet->header.len, 0);
}

static void expect_bytes(const struct rig_peer *peer, const char *text)
{
	const struct rig_packet *packet = expect_op(peer, PACKET_OP_RW);

	assert_int_equal(packet->header.len, strlen(text));
	assert_memory_equal(packet->payload, text, strlen(text));
}

static void expect_silence(void)
{
	const struct rig_packet *packet = next_but_credit();

	if (packet)
		fail_msg("operation %u out of nothing", packet->header.op);
}

static void expect_host_reads_stream(const struct rig_peer *peer, uint32_t stream, uint32_t len)
{
	static uint8_t bytes[1 << 20];

	assert_true(len <= sizeof(bytes));
	for (uint32_t i = 0; i < len; i++)
		bytes[i] = rig_byte(stream, i);
	rig_host_reads(peer, bytes, len);
	rig_run();
}

/* ---- the ends of a stream ---- */

static void test_a_guest_that_ends_its_half_may_still_be_written_to(void **state)
{
	struct rig_peer peer = open_one();
	uint32_t total;

	(void)state;
	rig_offer(32, 4096);
	rig_narrow(&peer);
	total = rig_choke(&peer, 1, 5000);
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_SEND);
	/* The end comes behind the last byte that waited. */
	expect_host_reads_stream(&peer, 1, total);
	rig_host_reads_end(&peer);

	rig_host_writes(&peer, "answer", 6);
	rig_run();
	expect_bytes(&peer, "answer");
	expect_silence();
	assert_false(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_a_host_program_that_ends_its_half_may_still_be_written_to(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	rig_offer(32, 4096);
	rig_host_writes(&peer, "last words", 10);
	assert_int_equal(shutdown(peer.host, SHUT_WR), 0);
	rig_run();
	expect_bytes(&peer, "last words");
	expect_shutdown(&peer, PACKET_SHUTDOWN_SEND);
	expect_silence();

	rig_rw(&peer, "answer", 6);
	rig_host_reads(&peer, "answer", 6);
	assert_false(rig_is_closed(peer.endpoint));

	/* Then the guest ends its own: nothing is left of the connection. */
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_SEND);
	rig_host_reads_end(&peer);
	expect_shutdown(&peer, PACKET_SHUTDOWN_BOTH);
	rig_say(&peer, PACKET_OP_RST, 0);
	assert_true(rig_is_closed(peer.endpoint));
	expect_silence();
	rig_close_host(&peer);
}

static void test_a_host_program_may_end_its_half_before_the_guest_answers(void **state)
{
	struct rig_peer peer = {.guest_port = 9, .buf_alloc = RIG_GUEST_BUFFER};
	char line[32];

	(void)state;
	rig_offer(8, 4096);
	peer.endpoint = rig_accept(&peer.host);
	rig_host_writes(&peer, "CONNECT 9\nquestion", 18);
	assert_int_equal(shutdown(peer.host, SHUT_WR), 0);
	rig_run();
	peer.host_port = rig.device.connections.next_port - 1;
	expect_op(&peer, PACKET_OP_REQUEST);
	expect_silence();
	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	snprintf(line, sizeof(line), "OK %u\n", peer.host_port);
	rig_host_reads(&peer, line, strlen(line));
	expect_bytes(&peer, "question");
	expect_shutdown(&peer, PACKET_SHUTDOWN_SEND);
	rig_rw(&peer, "answer", 6);
	rig_host_reads(&peer, "answer", 6);
	rig_close_host(&peer);
}

static void test_a_guest_that_reads_no_more_may_still_write(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	rig_offer(32, 4096);
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_RECEIVE);
	/* The host program is told, as a pipe without a reader tells it. */
	assert_int_equal(send(peer.host, "x", 1, MSG_NOSIGNAL), -1);
	assert_int_equal(errno, EPIPE);
	rig_rw(&peer, "more", 4);
	rig_host_reads(&peer, "more", 4);
	for (const struct rig_packet *packet; (packet = next_but_credit());)
		assert_int_equal(packet->header.op, PACKET_OP_SHUTDOWN);
	assert_false(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_a_host_program_that_reads_no_more_may_still_write(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	rig_offer(32, 4096);
	assert_int_equal(shutdown(peer.host, SHUT_RD), 0);
	rig_rw(&peer, "into the void", 13);
	expect_shutdown(&peer, PACKET_SHUTDOWN_RECEIVE);
	/* What is not wanted counts as taken: the guest's writers don't hang. */
	rig_say(&peer, PACKET_OP_CREDIT_REQUEST, 0);
	assert_int_equal(rig_expect(&peer, PACKET_OP_CREDIT_UPDATE)->header.fwd_cnt, 13);

	rig_host_writes(&peer, "still here", 10);
	rig_run();
	expect_bytes(&peer, "still here");
	assert_int_equal(shutdown(peer.host, SHUT_WR), 0);
	rig_run();
	expect_shutdown(&peer, PACKET_SHUTDOWN_BOTH);
	rig_close_host(&peer);
}

static void test_waiting_bytes_are_forgotten_when_the_host_program_reads_no_more(void **state)
{
	struct rig_peer peer = open_one();
	uint32_t total;

	(void)state;
	rig_offer(32, 4096);
	rig_narrow(&peer);
	total = rig_choke(&peer, 1, 20000);
	/* A unix socket tells its writer only when there is room again. */
	assert_int_equal(shutdown(peer.host, SHUT_RD), 0);
	expect_host_reads_stream(&peer, 1, total - 20000);
	expect_shutdown(&peer, PACKET_SHUTDOWN_RECEIVE);
	rig_say(&peer, PACKET_OP_CREDIT_REQUEST, 0);
	assert_int_equal(rig_expect(&peer, PACKET_OP_CREDIT_UPDATE)->header.fwd_cnt, total);
	rig_close_host(&peer);
}

static void test_a_host_program_that_closes_is_heard_to_the_end(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	rig_host_writes(&peer, "testament", 9);
	rig_close_host(&peer);
	rig_run();
	rig_offer(8, PACKET_HEADER_LEN + 5);
	rig_run();
	expect_bytes(&peer, "testa");
	expect_bytes(&peer, "ment");
	expect_shutdown(&peer, PACKET_SHUTDOWN_BOTH);
	assert_false(rig_is_closed(peer.endpoint));
	rig_say(&peer, PACKET_OP_RST, 0);
	assert_true(rig_is_closed(peer.endpoint));
	assert_int_equal(rig.device.connections.n_used, 0);
	expect_silence();
}

static void test_a_guest_that_does_not_answer_the_end_is_reset_after_eight_seconds(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	rig_offer(8, 4096);
	rig_close_host(&peer);
	rig_run();
	expect_shutdown(&peer, PACKET_SHUTDOWN_BOTH);
	rig_sleep(CONNECTION_CLOSING_MS - 1);
	expect_silence();
	assert_false(rig_is_closed(peer.endpoint));
	rig_sleep(1);
	expect_op(&peer, PACKET_OP_RST);
	assert_true(rig_is_closed(peer.endpoint));
	expect_silence();
}

static void test_bytes_that_cross_our_goodbye_are_not_held_against_the_guest(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	rig_offer(8, 4096);
	rig_close_host(&peer);
	rig_run();
	expect_shutdown(&peer, PACKET_SHUTDOWN_BOTH);
	rig_rw(&peer, "crossing", 8);
	expect_silence();
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_REPORT, NULL));
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_BOTH);
	expect_op(&peer, PACKET_OP_RST);
	expect_silence();
	assert_true(rig_is_closed(peer.endpoint));
}

static void test_a_host_program_that_leaves_bytes_unread_resets_the_guest(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	rig_offer(8, 4096);
	rig_rw(&peer, "unread", 6);
	rig_host_writes(&peer, "written", 7);
	rig_close_host(&peer);
	rig_run();
	expect_bytes(&peer, "written");
	expect_op(&peer, PACKET_OP_RST);
	expect_silence();
	assert_true(rig_is_closed(peer.endpoint));
}

static void test_a_reset_is_the_last_that_the_guest_hears(void **state)
{
	struct rig_peer peer = open_one();
	struct packet_header header = rig_header(&peer, PACKET_OP_RW);

	(void)state;
	rig_offer(8, 4096);
	rig_rw(&peer, "unread", 6);
	/* In one round: writing fails for good, and reading tells of the reset. */
	header.len = 4;
	rig_put(&header, "more");
	rig_close_host(&peer);
	rig_run();
	expect_op(&peer, PACKET_OP_RST);
	expect_silence();
}

static void test_what_a_closing_guest_has_sent_is_still_delivered(void **state)
{
	(void)state;
	for (int with_rst = 0; with_rst < 2; with_rst++) {
		struct rig_peer peer = open_one();
		uint32_t total;

		rig_offer(30, 4096);
		rig_narrow(&peer);
		total = rig_choke(&peer, 7, 30000);
		if (with_rst) {
			rig_say(&peer, PACKET_OP_RST, 0);
		} else {
			rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_BOTH);
			expect_op(&peer, PACKET_OP_RST); /* at once: close() does not wait */
		}
		expect_silence();
		assert_false(rig_is_closed(peer.endpoint));
		expect_host_reads_stream(&peer, 7, total);
		rig_host_reads_end(&peer);
		assert_true(rig_is_closed(peer.endpoint));
		assert_int_equal(rig.device.connections.n_used, 0);
		rig_close_host(&peer);
		rig_end();
		rig_start(&(struct rig_options){0});
	}
}

static void test_a_closing_guest_with_nothing_unsent_ends_the_socket_at_once(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	rig_offer(4, 4096);
	rig_rw(&peer, "all", 3);
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_BOTH);
	expect_op(&peer, PACKET_OP_RST);
	rig_host_reads(&peer, "all", 3);
	rig_host_reads_end(&peer);
	assert_true(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

/* The socket takes no more, and `len` bytes more wait. Returns all of them in *ret_total. */
static struct rig_peer open_choked(uint32_t len, uint32_t *ret_total)
{
	struct rig_peer peer = open_one();

	rig_offer(30, 4096);
	rig_narrow(&peer);
	*ret_total = rig_choke(&peer, 7, len);
	return peer;
}

/* One that writes has to hear of it, by a blocking write or by POLLOUT, while it may read on. */
static void expect_host_writes_in_vain(const struct rig_peer *peer)
{
	struct pollfd poll_out = {.fd = peer->host, .events = POLLOUT};

	assert_int_equal(poll(&poll_out, 1, 0), 1);
	assert_int_equal(send(peer->host, "more", 4, MSG_NOSIGNAL | MSG_DONTWAIT), -1);
	assert_int_equal(errno, EPIPE);
}

static void test_a_writer_hears_of_a_guest_that_has_gone_while_bytes_wait_for_it(void **state)
{
	uint32_t total;
	struct rig_peer peer = open_choked(30000, &total);

	(void)state;
	rig_fill(peer.host);
	rig_say(&peer, PACKET_OP_RST, 0);
	expect_host_writes_in_vain(&peer);
	assert_false(rig_is_closed(peer.endpoint));
	expect_host_reads_stream(&peer, 7, total);
	rig_host_reads_end(&peer);
	assert_true(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_a_writer_hears_of_a_guest_that_reads_no_more(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	rig_narrow(&peer);
	rig_fill(peer.host);
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_RECEIVE);
	expect_host_writes_in_vain(&peer);
	assert_false(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_draining_ends_after_thirty_seconds_rings_or_not(void **state)
{
	uint32_t total;
	struct rig_peer peer = open_choked(1000, &total);

	(void)state;
	rig_say(&peer, PACKET_OP_RST, 0);
	rig_stop_rings();
	assert_int_equal(device_timeout(&rig.device), CONNECTION_DRAINING_MS);
	rig_sleep(CONNECTION_DRAINING_MS - 1);
	assert_false(rig_is_closed(peer.endpoint));
	rig_sleep(1);
	assert_true(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_draining_goes_on_while_the_rings_are_stopped(void **state)
{
	uint32_t total;
	struct rig_peer peer = open_choked(30000, &total);

	(void)state;
	rig_say(&peer, PACKET_OP_RST, 0);
	rig_stop_rings();
	expect_host_reads_stream(&peer, 7, total);
	rig_host_reads_end(&peer);
	assert_true(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_a_draining_host_program_that_leaves_ends_the_draining(void **state)
{
	uint32_t total;
	struct rig_peer peer = open_choked(1000, &total);

	(void)state;
	rig_say(&peer, PACKET_OP_RST, 0);
	rig_close_host(&peer);
	rig_run();
	assert_true(rig_is_closed(peer.endpoint));
	assert_int_equal(rig.device.connections.n_used, 0);
	expect_silence();
}

static void test_a_pair_of_ports_is_free_while_its_former_stream_drains(void **state)
{
	struct rig_peer old = open_one(), peer;
	uint32_t total;

	(void)state;
	rig_offer(60, 4096);
	rig_narrow(&old);
	total = rig_choke(&old, 7, 1000);
	rig_say(&old, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_BOTH);
	expect_op(&old, PACKET_OP_RST);
	peer = rig_guest_connects(old.guest_port, old.host_port);
	rig_rw(&peer, "new", 3);
	rig_host_reads(&peer, "new", 3);
	rig_host_writes(&peer, "back", 4);
	rig_run();
	expect_bytes(&peer, "back");
	expect_host_reads_stream(&old, 7, total);
	rig_host_reads_end(&old);
	assert_false(rig_is_closed(peer.endpoint));
	rig_close_host(&old);
	rig_close_host(&peer);
}

static void test_hints_of_shutdown_add_up(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	rig_offer(8, 4096);
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_SEND);
	rig_say(&peer, PACKET_OP_SHUTDOWN, 0);
	expect_silence();
	assert_false(rig_is_closed(peer.endpoint));
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_RECEIVE);
	expect_op(&peer, PACKET_OP_RST);
	expect_silence();
	assert_true(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

/* ---- a guest without rx buffers ---- */

static void test_packets_to_a_guest_without_buffers_come_in_order_when_it_has_some(void **state)
{
	static const enum packet_op ops[] = {PACKET_OP_RESPONSE, PACKET_OP_RW, PACKET_OP_SHUTDOWN};
	struct rig_peer peer;

	(void)state;
	peer = rig_ask(1000, 80);
	rig_connected(&peer);
	rig_host_writes(&peer, "bytes", 5);
	rig_run();
	rig_close_host(&peer);
	rig_run();
	for (size_t i = 0; i < 3; i++) {
		rig_expect_no_packet();
		rig_offer(1, 4096);
		rig_run();
		rig_expect(&peer, ops[i]);
	}
	rig_expect_no_packet();
}

static void test_a_starved_worker_sleeps_and_asks_to_be_kicked(void **state)
{
	const struct rig_ring *rx = &rig.rings[RING_RX];
	struct rig_peer peer = open_one();
	uint16_t flags;

	(void)state;
	memcpy(&flags, rig.memory + rx->used, 2);
	assert_int_equal(flags, 1); /* nothing waits: no kick for each buffer */
	rig_host_writes(&peer, "bytes", 5);
	rig_run();
	memcpy(&flags, rig.memory + rx->used, 2);
	assert_int_equal(flags, 0);
	assert_int_equal(device_timeout(&rig.device), -1);
	rig_offer(2, 4096);
	rig_run();
	expect_bytes(&peer, "bytes");
	memcpy(&flags, rig.memory + rx->used, 2);
	assert_int_equal(flags, 1);
	rig_close_host(&peer);
}

static void test_no_answer_is_lost_for_want_of_buffers(void **state)
{
	struct rig_peer peers[12];
	uint32_t n_seen[12] = {0};
	static struct rig_packet packet;

	(void)state;
	for (uint32_t i = 0; i < 12; i++) {
		peers[i] = rig_ask(1000 + i, 80);
		if (i % 2)
			rig_connected(&peers[i]);
		else
			rig_refused(&peers[i], -ECONNREFUSED);
	}
	rig_run();
	rig_expect_no_packet();
	for (uint32_t i = 0; i < 12; i++) {
		rig_offer(1, PACKET_HEADER_LEN);
		rig_run();
		assert_true(rig_take(&packet));
		assert_in_range(packet.header.dst_port, 1000, 1011);
		n_seen[packet.header.dst_port - 1000]++;
		assert_int_equal(packet.header.op,
				 packet.header.dst_port % 2 ? PACKET_OP_RESPONSE : PACKET_OP_RST);
	}
	for (uint32_t i = 0; i < 12; i++) {
		assert_int_equal(n_seen[i], 1);
		if (i % 2)
			rig_close_host(&peers[i]);
	}
}

static void test_rst_replaces_what_waited_before_it(void **state)
{
	struct rig_peer peer;

	(void)state;
	peer = rig_ask(1000, 80);
	rig_connected(&peer);
	rig_host_writes(&peer, "bytes", 5);
	rig_run();
	rig_say(&peer, PACKET_OP_CREDIT_REQUEST, 0);
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_BOTH);
	rig_offer(8, 4096);
	rig_run();
	rig_expect(&peer, PACKET_OP_RST);
	rig_expect_no_packet();
	rig_close_host(&peer);
}

static void test_an_answer_about_credit_survives_starvation(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	rig_rw(&peer, "abc", 3);
	rig_say(&peer, PACKET_OP_CREDIT_REQUEST, 0);
	rig_say(&peer, PACKET_OP_CREDIT_REQUEST, 0);
	rig_expect_no_packet();
	rig_offer(4, 4096);
	rig_run();
	assert_int_equal(rig_expect(&peer, PACKET_OP_CREDIT_UPDATE)->header.fwd_cnt, 3);
	rig_expect_no_packet();

	rig_close_host(&peer);
}

static void test_stream_bytes_answer_about_credit_as_well(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	rig_rw(&peer, "abc", 3);
	rig_say(&peer, PACKET_OP_CREDIT_REQUEST, 0);
	rig_host_writes(&peer, "x", 1);
	rig_run();
	rig_offer(4, 4096);
	rig_run();
	assert_int_equal(rig_expect(&peer, PACKET_OP_RW)->header.fwd_cnt, 3);
	rig_expect_no_packet();
	rig_close_host(&peer);
}

static void test_the_rst_of_a_former_connection_never_follows_the_answer_to_the_next(void **state)
{
	(void)state;
	/* Buffers come one by one, so every packet that waits is passed over many times. */
	for (uint32_t n_kicks = 0; n_kicks < 4; n_kicks++) {
		struct rig_peer old = open_one(), peer;

		rig_say(&old, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_BOTH); /* RST is due */
		peer = rig_ask(old.guest_port, old.host_port);
		rig_connected(&peer);
		rig_run();
		for (uint32_t i = 0; i < n_kicks; i++)
			rig_run();
		rig_offer(1, 4096);
		rig_run();
		rig_expect(&old, PACKET_OP_RST);
		rig_offer(1, 4096);
		rig_run();
		rig_expect(&peer, PACKET_OP_RESPONSE);
		rig_expect_no_packet();
		rig_close_host(&old);
		rig_close_host(&peer);
		rig_end();
		rig_start(&(struct rig_options){0});
	}
}

static void test_rx_buffers_of_no_use_are_given_back_and_cost_no_packet(void **state)
{
	struct rig_peer peer;
	struct rig_buffer buffers[2];
	static struct rig_packet packet;

	(void)state;
	peer = rig_ask(1000, 80);
	rig_connected(&peer);
	rig_run();
	rig_offer(1, PACKET_HEADER_LEN - 1);
	rig_offer(1, 0);
	buffers[0] = (struct rig_buffer){rig_place(4096), 4096, 0}; /* readable */
	rig_put_chain(RING_RX, buffers, 1);
	buffers[1] = (struct rig_buffer){rig_place(4096), 4096, RIG_WRITE};
	rig_put_chain(RING_RX, buffers, 2); /* readable, then writable */
	buffers[0].flags = RIG_WRITE;
	buffers[1].flags = 0;
	rig_put_chain(RING_RX, buffers, 2); /* the other way round */
	rig_offer(1, 4096);
	rig_run();
	for (uint32_t i = 0; i < 5; i++) {
		assert_true(rig_take(&packet));
		assert_int_equal(packet.used_len, 0);
	}
	rig_expect(&peer, PACKET_OP_RESPONSE);
	assert_int_equal(rig.device.n_dropped, 5);

	/* Room for a header alone holds no stream bytes. */
	rig_offer(1, PACKET_HEADER_LEN);
	rig_offer(1, PACKET_HEADER_LEN + 2);
	rig_offer(1, PACKET_HEADER_LEN);
	rig_offer(1, PACKET_HEADER_LEN + 9);
	rig_host_writes(&peer, "bytes", 5);
	rig_run();
	assert_true(rig_take(&packet));
	assert_int_equal(packet.used_len, 0);
	expect_bytes(&peer, "by");
	assert_true(rig_take(&packet));
	assert_int_equal(packet.used_len, 0);
	expect_bytes(&peer, "tes");
	rig_close_host(&peer);
}

static void test_packets_may_lie_over_rx_descriptors_as_the_driver_likes(void **state)
{
	struct rig_peer peer = open_one();

	(void)state;
	for (uint32_t split = 1; split < PACKET_HEADER_LEN + 10; split++) {
		uint64_t place = rig_place(4096);
		struct rig_buffer buffers[] = {
			{place, split, RIG_WRITE},
			{place + split, 0, RIG_WRITE},
			{place + split, 3, RIG_WRITE},
			{place + split + 3, 4000 - split, RIG_WRITE},
		};

		rig_put_chain(RING_RX, buffers, 4);
		rig_host_writes(&peer, "0123456789", 10);
		rig_run();
		expect_bytes(&peer, "0123456789");
		peer.fwd_cnt += 10;
		rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	}
	rig_close_host(&peer);
}

/* A byte in each: more in two of them than there are places for in one batch. */
static void test_packets_in_very_many_pieces_come_whole_and_in_order(void **state)
{
	enum { PIECES = 20000 };
	struct rig_peer peer;
	static uint8_t bytes[2 * PIECES];

	tear_down(state);
	rig_start(&(struct rig_options){.features = RIG_F_STREAM | RIG_F_INDIRECT});
	peer = open_one();
	for (uint32_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = rig_byte(9, i);
	for (uint32_t round = 0; round < 2; round++) {
		struct packet_header header = rig_header(&peer, PACKET_OP_RW);
		uint64_t table = rig_place(16 * (PIECES + 1)), payload = rig_place(PIECES);
		uint64_t head = rig_place(PACKET_HEADER_LEN);

		header.len = PIECES;
		memcpy(rig_at(head), &header, PACKET_HEADER_LEN);
		memcpy(rig_at(payload), bytes + (size_t)round * PIECES, PIECES);
		for (uint32_t i = 0; i <= PIECES; i++) {
			uint64_t address = i == 0 ? head : payload + i - 1;
			uint32_t len = i == 0 ? PACKET_HEADER_LEN : 1;
			uint16_t flags = i < PIECES ? RIG_NEXT : 0, next = (uint16_t)(i + 1);
			uint8_t *place = rig_at(table + UINT64_C(16) * i);

			memcpy(place, &address, 8);
			memcpy(place + 8, &len, 4);
			memcpy(place + 12, &flags, 2);
			memcpy(place + 14, &next, 2);
		}
		rig_put_chain(RING_TX, &(struct rig_buffer){table, 16 * (PIECES + 1), RIG_INDIRECT},
			      1);
	}
	rig_run();
	rig_host_reads(&peer, bytes, sizeof(bytes));
	rig_close_host(&peer);
}

static void test_very_many_connections_end_at_once(void **state)
{
	enum { N = 2 * RELEASED_MAX + 2 };
	static struct rig_peer peers[N];

	tear_down(state);
	rig_start(&(struct rig_options){.n_connections = N, .num = 512});
	rig_offer(N, 4096);
	for (uint32_t i = 0; i < N; i++)
		peers[i] = rig_guest_connects(1000 + i, 80);
	for (uint32_t i = 0; i < N; i++) {
		struct packet_header header = rig_header(&peers[i], PACKET_OP_RST);

		rig_put(&header, NULL);
	}
	rig_run();
	for (uint32_t i = 0; i < N; i++) {
		rig_host_reads_end(&peers[i]);
		assert_true(rig_is_closed(peers[i].endpoint));
		rig_close_host(&peers[i]);
	}
}

static void test_chains_of_very_many_pieces_take_what_one_read_can(void **state)
{
	struct rig_peer peer = open_one();
	static struct rig_buffer buffers[1300];
	uint8_t bytes[3000];
	uint32_t n = 0;

	(void)state;
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = rig_byte(5, i);
	/* One byte in each piece: more of them than readv() takes, even in one chain. */
	for (uint32_t round = 0; round < 3; round++) {
		for (uint32_t i = 0; i < 1300; i++)
			buffers[i] = (struct rig_buffer){rig_place(1), 1, RIG_WRITE};
		rig_put_chain(RING_RX, buffers, 1300);
	}
	rig_host_writes(&peer, bytes, sizeof(bytes));
	rig_run();
	for (uint32_t round = 0; round < 3; round++) {
		const struct rig_packet *packet = expect_op(&peer, PACKET_OP_RW);

		assert_in_range(packet->header.len, 900, 1024);
		assert_memory_equal(packet->payload, bytes + n, packet->header.len);
		n += packet->header.len;
	}
	expect_silence();
	assert_false(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_ring_1_waits_when_too_many_answers_do_and_goes_on_later(void **state)
{
	struct rig_peer peer = {.host_port = 80};

	(void)state;
	for (uint32_t i = 0; i < ORPHANS_MAX + 100; i++) {
		struct packet_header header;

		peer.guest_port = i;
		header = rig_header(&peer, PACKET_OP_RW);
		rig_put(&header, NULL);
	}
	rig_run();
	assert_int_equal(rig_n_sent(), ORPHANS_MAX);
	/* It does not ask to be kicked for what it could not take. */
	assert_int_equal(rig.memory[rig.rings[RING_TX].used], 1);

	for (uint32_t i = 0; i < ORPHANS_MAX + 100; i++) {
		rig_offer(1, PACKET_HEADER_LEN);
		rig_run();
		rig_expect_rst(PACKET_HOST_CID, 80, i, PACKET_TYPE_STREAM);
		rig_expect_no_packet();
	}
	assert_int_equal(rig_n_sent(), 100);
	assert_int_equal(rig.memory[rig.rings[RING_TX].used], 0);
}

static void test_a_busy_connection_does_not_keep_the_others_from_the_guest(void **state)
{
	static uint8_t bytes[150000];
	struct rig_peer busy = open_one(), quiet;
	uint32_t at = 0;

	(void)state;
	rig_offer(1, 4096);
	quiet = rig_guest_connects(1001, 80);
	rig_host_writes(&busy, bytes, sizeof(bytes));
	rig_offer(4, 1000);
	rig_run();
	rig_host_writes(&quiet, "me too", 6);
	rig_run();
	rig_offer(200, 1000);
	rig_run();
	for (const struct rig_packet *packet; (packet = next_but_credit()); at++)
		if (packet->header.dst_port == 1001)
			break;
	/* One turn of the busy one, no more. */
	assert_in_range(at, 0, 4 + 64);
	rig_close_host(&busy);
	rig_close_host(&quiet);
}

/* ---- everything at once, by a small model of guest and host programs ---- */

#define FLOWS	   4
#define UNREAD_MAX 1024

struct flow {
	struct rig_peer peer;
	uint64_t guest_sent, host_got;
	uint64_t host_sent, guest_got;
	uint32_t device_fwd, device_buf_alloc;
	uint64_t ends[UNREAD_MAX]; /* of the packets that the guest has not consumed */
	uint32_t n_ends;
	bool owes_update, saw_end;
};

static struct flow flows[FLOWS];
static bool are_rings_stopped;

static struct flow *flow_of(const struct rig_packet *packet)
{
	for (uint32_t i = 0; i < FLOWS; i++)
		if (flows[i].peer.guest_port == packet->header.dst_port &&
		    flows[i].peer.host_port == packet->header.src_port)
			return &flows[i];
	fail_msg("a packet for nobody");
	return NULL;
}

static void guest_consumes(struct flow *flow, uint32_t len)
{
	uint32_t n = 0;

	flow->peer.fwd_cnt += len;
	while (n < flow->n_ends && (int32_t)((uint32_t)flow->ends[n] - flow->peer.fwd_cnt) <= 0)
		n++;
	flow->n_ends -= n;
	memmove(flow->ends, flow->ends + n, flow->n_ends * sizeof(flow->ends[0]));
}

static void guest_gets_bytes(struct flow *flow, const struct rig_packet *packet)
{
	uint32_t stream = 2 * flow->peer.guest_port, len = packet->header.len;

	assert_int_not_equal(len, 0);
	assert_false(flow->saw_end);
	for (uint32_t i = 0; i < len; i++)
		if (packet->payload[i] != rig_byte(stream, flow->guest_got + i))
			fail_msg("byte %lu is wrong", (unsigned long)flow->guest_got + i);
	flow->guest_got += len;
	assert_true(flow->guest_got <= flow->host_sent);
	assert_true((uint32_t)flow->guest_got - flow->peer.fwd_cnt <= flow->peer.buf_alloc);
	assert_true(flow->n_ends < UNREAD_MAX);
	flow->ends[flow->n_ends++] = flow->guest_got;
	assert_true(flow->n_ends <= flow->peer.buf_alloc / CREDIT_PACKET_OVERHEAD);
}

static void guest_takes_packets(void)
{
	static struct rig_packet packet;

	while (rig_take(&packet)) {
		struct flow *flow;

		if (packet.used_len == 0)
			continue;
		flow = flow_of(&packet);
		/* It never claims more than was sent, nor takes anything back. */
		assert_true((int32_t)(packet.header.fwd_cnt - flow->device_fwd) >= 0);
		assert_true(packet.header.fwd_cnt <= flow->guest_sent);
		flow->device_fwd = packet.header.fwd_cnt;
		flow->device_buf_alloc = packet.header.buf_alloc;
		if (packet.header.op == PACKET_OP_RW)
			guest_gets_bytes(flow, &packet);
		else if (packet.header.op == PACKET_OP_CREDIT_REQUEST)
			flow->owes_update = true;
		else if (packet.header.op == PACKET_OP_SHUTDOWN)
			flow->saw_end = true;
		else
			assert_int_equal(packet.header.op, PACKET_OP_CREDIT_UPDATE);
	}
	rig_n_sent();
}

static uint32_t free_descriptors(uint32_t index)
{
	const struct rig_ring *ring = &rig.rings[index];

	return ring->num - 2u * (uint16_t)(ring->avail_idx - ring->used_idx);
}

static void guest_sends(struct flow *flow)
{
	static uint8_t bytes[PACKET_PAYLOAD_MAX];
	uint32_t room = flow->device_buf_alloc - (uint32_t)(flow->guest_sent - flow->device_fwd);
	uint32_t len = rig_random() % (rig_random() % 4 ? 600 : PACKET_PAYLOAD_MAX);
	struct packet_header header = rig_header(&flow->peer, PACKET_OP_RW);

	len = len < room ? len : room;
	if (len == 0 || free_descriptors(RING_TX) < 4)
		return;
	for (uint32_t i = 0; i < len; i++)
		bytes[i] = rig_byte(2 * flow->peer.guest_port + 1, flow->guest_sent + i);
	header.len = len;
	rig_put(&header, bytes);
	flow->guest_sent += len;
}

static void guest_tells_credit(struct flow *flow)
{
	struct packet_header header = rig_header(&flow->peer, PACKET_OP_CREDIT_UPDATE);

	if (free_descriptors(RING_TX) < 4)
		return;
	rig_put(&header, NULL);
	flow->owes_update = false;
}

static void host_sends(struct flow *flow)
{
	static uint8_t bytes[20000];
	size_t len = rig_random() % (rig_random() % 4 ? 50 : sizeof(bytes));
	ssize_t n;

	for (size_t i = 0; i < len; i++)
		bytes[i] = rig_byte(2 * flow->peer.guest_port, flow->host_sent + i);
	n = send(flow->peer.host, bytes, len, MSG_NOSIGNAL);
	if (n > 0)
		flow->host_sent += (uint64_t)n;
}

static void host_reads(struct flow *flow, size_t len)
{
	static uint8_t bytes[100000];
	ssize_t n = recv(flow->peer.host, bytes, len, 0);

	for (ssize_t i = 0; i < n; i++)
		if (bytes[i] !=
		    rig_byte(2 * flow->peer.guest_port + 1, flow->host_got + (uint64_t)i))
			fail_msg("byte %lu is wrong", (unsigned long)flow->host_got);
	if (n > 0)
		flow->host_got += (uint64_t)n;
}

static void toggle_rings(void)
{
	if (are_rings_stopped)
		rig_start_rings();
	else
		rig_stop_rings();
	are_rings_stopped = !are_rings_stopped;
}

static void step(void)
{
	struct flow *flow = &flows[rig_random() % FLOWS];

	switch (rig_random() % 12) {
	case 0:
	case 1:
		guest_sends(flow);
		return;
	case 2:
	case 3:
		host_sends(flow);
		return;
	case 4:
		host_reads(flow, rig_random() % (rig_random() % 2 ? 3000 : 100000));
		return;
	case 5:
		if (free_descriptors(RING_RX) > 20)
			rig_offer(rig_random() % 8, PACKET_HEADER_LEN + rig_random() % 3000);
		return;
	case 6:
		guest_takes_packets();
		return;
	case 7:
		if ((uint32_t)flow->guest_got != flow->peer.fwd_cnt)
			guest_consumes(flow, rig_random() % ((uint32_t)flow->guest_got -
							     flow->peer.fwd_cnt + 1));
		return;
	case 8:
		if (flow->owes_update)
			guest_tells_credit(flow);
		return;
	case 9:
		if (rig_random() % 4 == 0)
			toggle_rings();
		return;
	default:
		rig_sleep(rig_random() % 8);
	}
}

static void finish(struct flow *flow)
{
	for (uint32_t i = 0; i < 20000; i++) {
		if (flow->host_got == flow->guest_sent && flow->guest_got == flow->host_sent)
			return;
		guest_takes_packets();
		guest_consumes(flow, (uint32_t)flow->guest_got - flow->peer.fwd_cnt);
		guest_tells_credit(flow);
		for (uint32_t k = 0; k < FLOWS; k++) {
			guest_consumes(&flows[k],
				       (uint32_t)flows[k].guest_got - flows[k].peer.fwd_cnt);
			if (flows[k].owes_update)
				guest_tells_credit(&flows[k]);
			host_reads(&flows[k], 100000);
		}
		if (free_descriptors(RING_RX) > 20)
			rig_offer(8, 3000);
		rig_sleep(1);
	}
	fail_msg("a stream hangs: %lu of %lu, %lu of %lu", (unsigned long)flow->host_got,
		 (unsigned long)flow->guest_sent, (unsigned long)flow->guest_got,
		 (unsigned long)flow->host_sent);
}

static void run_model(uint64_t seed, const struct rig_options *options, uint32_t n_steps)
{
	memset(flows, 0, sizeof(flows));
	are_rings_stopped = false;
	rig_end();
	rig_start(options);
	rig.random = seed;
	for (uint32_t i = 0; i < FLOWS; i++) {
		rig_offer(1, 4096);
		flows[i].peer =
			i % 2 ? rig_guest_connects(1000 + i, 80) : rig_host_connects(50 + i);
		flows[i].device_buf_alloc = rig.device.buffer_size;
		/* Each guest's socket is another size. */
		flows[i].peer.buf_alloc = 2048u << (2 * i);
		guest_tells_credit(&flows[i]);
		rig_run();
		if (i < 2)
			rig_narrow(&flows[i].peer);
	}
	rig_n_sent();
	for (uint32_t i = 0; i < n_steps; i++)
		step();
	if (are_rings_stopped)
		toggle_rings();
	for (uint32_t i = 0; i < FLOWS; i++)
		finish(&flows[i]);

	/* No byte more on either side, and the ends are told. */
	for (uint32_t i = 0; i < FLOWS; i++) {
		rig_host_reads_nothing(&flows[i].peer);
		shutdown(flows[i].peer.host, SHUT_WR);
		rig_say(&flows[i].peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_SEND);
		rig_n_sent();
		guest_takes_packets();
		rig_offer(8, 3000);
		rig_run();
		guest_takes_packets();
		assert_true(flows[i].saw_end);
		rig_host_reads_end(&flows[i].peer);
		rig_say(&flows[i].peer, PACKET_OP_RST, 0);
		assert_true(rig_is_closed(flows[i].peer.endpoint));
		rig_close_host(&flows[i].peer);
	}
	assert_int_equal(rig.device.connections.n_used, 0);
}

static void test_no_byte_is_lost_however_rings_stop_and_readers_stall(void **state)
{
	static const struct rig_options options[] = {
		{.num = 64},
		{.num = 64, .features = RIG_F_EVENT_IDX},
		{.num = 256, .buffer_size = 4096},
		{.num = 1024, .buffer_size = 256 * 1024, .features = RIG_F_EVENT_IDX},
	};

	(void)state;
	for (uint64_t seed = 1; seed <= 12; seed++)
		run_model(seed, &options[seed % 4], 8000);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
/* Who waits for a few bytes does not wait for a read that finds no more. */
static void test_a_guest_is_called_before_a_socket_is_tried_again(void **state)
{
	struct rig_peer peer = open_one();
	const struct connection *connection = connection_find(
		&rig.device.connections, PACKET_HOST_CID, 1000, 80, PACKET_TYPE_STREAM);
	struct epoll_event event;

	(void)state;
	rig_offer(2, 4096);
	rig_run();
	rig_host_writes(&peer, "x", 1);
	(void)rig_calls(RING_RX);
	assert_int_equal(epoll_wait(rig.epoll, &event, 1, 0), 1);
	assert_true(device_note_event(&rig.device, event.data.u64, event.events));
	assert_true(device_pump(&rig.device));
	assert_int_equal(rig_calls(RING_RX), 1);
	assert_true(connection->is_readable);
	rig_run();
	assert_false(connection->is_readable);
}

#define TEST_LONG(name) cmocka_unit_test_setup_teardown(name, set_up_long_rings, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_guest_that_ends_its_half_may_still_be_written_to),
		TEST(test_a_host_program_that_ends_its_half_may_still_be_written_to),
		TEST(test_a_host_program_may_end_its_half_before_the_guest_answers),
		TEST(test_a_guest_that_reads_no_more_may_still_write),
		TEST(test_a_host_program_that_reads_no_more_may_still_write),
		TEST(test_waiting_bytes_are_forgotten_when_the_host_program_reads_no_more),
		TEST(test_a_host_program_that_closes_is_heard_to_the_end),
		TEST(test_a_guest_that_does_not_answer_the_end_is_reset_after_eight_seconds),
		TEST(test_bytes_that_cross_our_goodbye_are_not_held_against_the_guest),
		TEST(test_a_host_program_that_leaves_bytes_unread_resets_the_guest),
		TEST(test_a_reset_is_the_last_that_the_guest_hears),
		TEST(test_what_a_closing_guest_has_sent_is_still_delivered),
		TEST(test_a_closing_guest_with_nothing_unsent_ends_the_socket_at_once),
		TEST(test_a_writer_hears_of_a_guest_that_has_gone_while_bytes_wait_for_it),
		TEST(test_a_writer_hears_of_a_guest_that_reads_no_more),
		TEST(test_draining_ends_after_thirty_seconds_rings_or_not),
		TEST(test_draining_goes_on_while_the_rings_are_stopped),
		TEST(test_a_draining_host_program_that_leaves_ends_the_draining),
		TEST(test_a_pair_of_ports_is_free_while_its_former_stream_drains),
		TEST(test_hints_of_shutdown_add_up),
		TEST(test_packets_to_a_guest_without_buffers_come_in_order_when_it_has_some),
		TEST(test_a_starved_worker_sleeps_and_asks_to_be_kicked),
		TEST(test_no_answer_is_lost_for_want_of_buffers),
		TEST(test_rst_replaces_what_waited_before_it),
		TEST(test_an_answer_about_credit_survives_starvation),
		TEST(test_stream_bytes_answer_about_credit_as_well),
		TEST(test_the_rst_of_a_former_connection_never_follows_the_answer_to_the_next),
		TEST(test_rx_buffers_of_no_use_are_given_back_and_cost_no_packet),
		TEST(test_packets_may_lie_over_rx_descriptors_as_the_driver_likes),
		TEST(test_packets_in_very_many_pieces_come_whole_and_in_order),
		TEST(test_very_many_connections_end_at_once),
		TEST(test_a_guest_is_called_before_a_socket_is_tried_again),
		TEST_LONG(test_chains_of_very_many_pieces_take_what_one_read_can),
		TEST_LONG(test_ring_1_waits_when_too_many_answers_do_and_goes_on_later),
		TEST_LONG(test_a_busy_connection_does_not_keep_the_others_from_the_guest),
		TEST(test_no_byte_is_lost_however_rings_stop_and_readers_stall),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
