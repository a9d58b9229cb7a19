/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Calls that fail: what is in the way for a moment costs nothing, a shortage of the kernel
 * one connection, and both sides and the front know.
 */

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/failing_calls.h"
#include "tests/unit/handover_rig.h"

#define EOM	1u
#define SIBLING 77u

static void start_with(uint32_t n_rx_buffers)
{
	rig_start(&(struct rig_options){.features = RIG_F_SEQPACKET, .num = 256});
	rig.after_run = NULL;
	rig_offer(n_rx_buffers, 4096);
}

static void start(void)
{
	start_with(64);
}

static int set_up(void **state)
{
	(void)state;
	start();
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	failing_call_has_come();
	rig_end();
	return 0;
}

static void expect_payload(const struct rig_peer *peer, const char *text)
{
	const struct rig_packet *packet = rig_expect(peer, PACKET_OP_RW);

	assert_int_equal(packet->header.len, strlen(text));
	assert_memory_equal(packet->payload, text, strlen(text));
}

/* ---- every call, one after the other ---- */

/* The scenario again and again, each time with another call that fails. */
static void fail_each(enum failing_call call, bool is_channel, const int *errors, size_t n_errors,
		      void (*scenario)(void))
{
	uint32_t nth = 0;
	bool has_come;

	rig_end();
	do {
		start();
		failing_call_plan(call, is_channel ? rig.device.channel : -1, nth + 1,
				  errors[nth % n_errors]);
		nth++;
		scenario();
		has_come = failing_call_has_come();
		rig_end();
	} while (has_come);
	assert_true(nth > 1);
	start();
}

static void talk(struct rig_peer *peer)
{
	bool has_messages = peer->type == PACKET_TYPE_SEQPACKET;

	rig_rw_flags(peer, "from the guest", 14, has_messages ? EOM : 0);
	rig_host_reads(peer, "from the guest", 14);
	if (has_messages) {
		rig_rw_flags(peer, NULL, 0, EOM);
		rig_host_reads_end(peer); /* what an empty message looks like */
	}
	rig_host_writes(peer, "from the host", 13);
	rig_run();
	expect_payload(peer, "from the host");
	rig_close_host(peer);
	rig_run();
	assert_int_equal(rig_expect(peer, PACKET_OP_SHUTDOWN)->header.flags, PACKET_SHUTDOWN_BOTH);
	rig_say(peer, PACKET_OP_RST, 0);
	assert_true(rig_is_closed(peer->endpoint));
}

static void expect_state(bool is_good)
{
	struct rig_told told;

	rig_expect_told(VSOCKD__ENVELOPE__BODY_STATE_DONE, &told);
	assert_int_equal(told.values[0], is_good);
}

/* Out through a pipe, and in again. */
static void move_state(void)
{
	Vsockd__StateSave save = VSOCKD__STATE_SAVE__INIT;
	Vsockd__StateLoad load = VSOCKD__STATE_LOAD__INIT;
	int pipes[2];

	assert_int_equal(pipe2(pipes, O_NONBLOCK | O_CLOEXEC), 0);
	assert_int_equal(rig_command_of(&save.base, pipes[1]), 0);
	rig_run();
	expect_state(true);
	close(pipes[1]);
	assert_int_equal(rig_command_of(&load.base, pipes[0]), 0);
	rig_run();
	expect_state(true);
	close(pipes[0]);
}

static void serve_all_kinds(void)
{
	struct rig_peer peers[] = {
		rig_guest_connects(1000, 80),
		rig_host_connects(1001),
		rig_guest_connects_messages(1002, 80),
		rig_host_connects_messages(1003),
	};

	move_state();
	for (size_t i = 0; i < sizeof(peers) / sizeof(peers[0]); i++)
		talk(&peers[i]);
	assert_int_equal(rig.device.connections.n_used, 0);
}

static void test_a_call_that_was_interrupted_is_made_again(void **state)
{
	static const enum failing_call calls[] = {CALL_READV, CALL_WRITEV, CALL_RECVFROM,
						  CALL_RECVMSG, CALL_SENDMSG};
	static const int interrupted[] = {EINTR};

	(void)state;
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		fail_each(calls[i], false, interrupted, 1, serve_all_kinds);
}

/* ---- the channel ---- */

static void start_in_band(void)
{
	rig_stop_rings();
	rig.in_band = RING_CALLED_IN_BAND | RING_FAILS_IN_BAND;
	rig_start_rings();
	rig_ring_enable(RING_EVENT, true);
	assert_int_equal(rig_ring_start(RING_EVENT, 0, false), 0);
}

static void reset_by_event(void)
{
	Vsockd__Quarantine order = VSOCKD__QUARANTINE__INIT;

	order.is_on = true;
	order.sends_reset = true;
	assert_int_equal(rig_command_of(&order.base, -1), 0);
	for (uint32_t i = 0; i < 2; i++) {
		rig_put_chain(RING_EVENT, &(struct rig_buffer){rig_place(64), 8, RIG_WRITE}, 1);
		rig_run();
	}
	order.is_on = false;
	order.sends_reset = false;
	assert_int_equal(rig_command_of(&order.base, -1), 0);
}

static void ask_for_statistics(void)
{
	Vsockd__CountersQuery counters = VSOCKD__COUNTERS_QUERY__INIT;
	Vsockd__ConnectionsQuery connections = VSOCKD__CONNECTIONS_QUERY__INIT;
	Vsockd__Envelope envelope;

	rig.n_counters = 0;
	message_wrap(&counters.base, &envelope);
	rig_post(&envelope, -1);
	rig_run();
	assert_int_equal(rig.n_counters, COUNTER_MAX);
	message_wrap(&connections.base, &envelope);
	rig_post(&envelope, -1);
	rig_run();
}

static void break_ring(uint32_t ring)
{
	const uint16_t far = 30000;

	memcpy(rig.memory + rig.rings[ring].avail + 2, &far, sizeof(far));
	rig_run();
	/* A line for the log may be lost where there is no room. */
	(void)rig_take_told(VSOCKD__ENVELOPE__BODY_REPORT, NULL);
}

/* All that a worker ever has to say. What it said, but for the calls of the driver, is in
 * heard. */
static struct rig_told heard[64];
static uint32_t n_heard;

static bool told_calls(void)
{
	uint32_t n = 0;
	struct rig_told told;

	while (rig_take_told(VSOCKD__ENVELOPE__BODY_NOTIFY, &told))
		n += !told.values[1];
	return n > 0;
}

static void say_all(void)
{
	struct rig_peer stream, sibling = {.cid = SIBLING, .guest_port = 22, .host_port = 5000};
	struct rig_told told;

	start_in_band();
	reset_by_event();
	stream = rig_guest_connects(1000, 80);
	rig_host_connects(1001);
	rig_sibling_asks(&sibling);
	rig_run();
	rig_expect(&sibling, PACKET_OP_REQUEST);
	rig_say(&sibling, PACKET_OP_RESPONSE, 0);
	sibling = rig_ask_sibling(1002, SIBLING, 80);
	rig_say(&sibling, PACKET_OP_RST, 0); /* which it cancels */
	move_state();
	ask_for_statistics();
	rig_close_host(&stream);
	rig_run();
	rig_say(&stream, PACKET_OP_RST, 0);
	assert_true(told_calls());
	break_ring(RING_TX);
	rig_expect_told(VSOCKD__ENVELOPE__BODY_NOTIFY, &told);
	assert_int_equal(told.values[0], RING_TX);
	assert_true(told.values[1]);
}

static void say_all_and_compare(void)
{
	say_all();
	assert_int_equal(rig.n_told, n_heard);
	assert_memory_equal(rig.told, heard, n_heard * sizeof(heard[0]));
}

static const int full[] = {EAGAIN, ENOBUFS, ENOMEM};

static void test_what_finds_no_room_in_the_channel_is_said_once_and_in_its_turn(void **state)
{
	(void)state;
	say_all();
	assert_in_range(rig.n_told, 10, sizeof(heard) / sizeof(heard[0]));
	n_heard = rig.n_told;
	memcpy(heard, rig.told, n_heard * sizeof(heard[0]));
	fail_each(CALL_SENDMSG, true, full, 3, say_all_and_compare);
}

static void hand_over(void)
{
	struct rig_peer peers[] = {
		rig_guest_connects(1000, 80),
		rig_host_connects_messages(1001),
		rig_host_asks(1002),
	};
	const struct packet_header stray =
		rig_header(&(struct rig_peer){.guest_port = 9}, PACKET_OP_CREDIT_UPDATE);
	struct rig_peer narrow = rig_guest_connects(1003, 80);

	rig_narrow(&narrow);
	rig_choke(&narrow, 1, 20000);
	rig_stop_rings(); /* so that there is something to be told of each kind */
	rig_start_rings();
	rig_send(&stray, NULL);
	rig_hand_over();
	while (rig_has_packet())
		rig_take(&(struct rig_packet){0});
	talk(&peers[0]);
	talk(&peers[1]);
}

static void test_a_handover_goes_on_where_the_channel_had_no_room(void **state)
{
	(void)state;
	fail_each(CALL_SENDMSG, true, full, 3, hand_over);
}

/* ---- shortages of the kernel ---- */

static void expect_shortage(int error)
{
	struct rig_told told;

	rig_expect_report(REPORT_SHORTAGE, &told);
	assert_int_equal(told.values[3], error);
}

/* One has ended, the other knows nothing of it. */
static void expect_gone(const struct rig_peer *gone, struct rig_peer *other, int error)
{
	expect_shortage(error);
	assert_true(rig_is_closed(gone->endpoint));
	rig_expect_no_packet();
	talk(other);
	assert_int_equal(rig.device.connections.n_used, 0);
	assert_int_equal(rig_n_chunks(), 0);
}

static void test_a_host_program_whose_socket_cannot_be_watched_is_let_go(void **state)
{
	struct rig_peer other = rig_guest_connects(1000, 80), peer = {0};

	(void)state;
	failing_call_plan(CALL_EPOLL_CTL, -1, 1, ENOSPC);
	peer.endpoint = rig_accept(&peer.host);
	rig_run();
	assert_true(failing_call_has_come());
	rig_host_reads_end(&peer);
	expect_gone(&peer, &other, ENOSPC);
	rig_close_host(&peer);
}

static void test_a_guest_is_refused_whose_socket_cannot_be_watched(void **state)
{
	struct rig_peer other = rig_guest_connects(1000, 80), peer = rig_ask(1001, 80);

	(void)state;
	failing_call_plan(CALL_EPOLL_CTL, -1, 1, ENOMEM);
	rig_connected(&peer);
	rig_run();
	assert_true(failing_call_has_come());
	rig_expect(&peer, PACKET_OP_RST);
	rig_host_reads_end(&peer);
	expect_gone(&peer, &other, ENOMEM);
	rig_close_host(&peer);
}

static void test_a_guest_is_not_asked_for_a_sibling_that_cannot_be_watched(void **state)
{
	struct rig_peer other = rig_guest_connects(1000, 80);
	struct rig_peer peer = {.cid = SIBLING, .guest_port = 22, .host_port = 5000};

	(void)state;
	failing_call_plan(CALL_EPOLL_CTL, -1, 1, ENOSPC);
	rig_sibling_asks(&peer);
	rig_run();
	assert_true(failing_call_has_come());
	rig_host_reads_end(&peer);
	expect_gone(&peer, &other, ENOSPC);
	rig_close_host(&peer);
}

static void test_a_line_that_cannot_be_read_ends_the_handshake(void **state)
{
	struct rig_peer other = rig_guest_connects(1000, 80), peer = {0};
	char byte;

	(void)state;
	peer.endpoint = rig_accept(&peer.host);
	rig_run();
	rig_host_writes(&peer, "CONNECT 1000\n", 13);
	failing_call_plan(CALL_READV, -1, 1, ENOMEM);
	rig_run();
	assert_true(failing_call_has_come());
	/* It sees that its line was not read. */
	assert_int_equal(recv(peer.host, &byte, 1, 0), -1);
	assert_int_equal(errno, ECONNRESET);
	expect_gone(&peer, &other, ENOMEM);
	rig_close_host(&peer);
}

/* Bytes may be missing from then on: neither side may take what comes for the rest. */
static void test_bytes_that_the_kernel_did_not_take_end_their_stream(void **state)
{
	static const int errors[] = {ENOBUFS, ENOMEM, ENOSPC};

	(void)state;
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		struct rig_peer other = rig_guest_connects(1000, 80);
		struct rig_peer peer = rig_guest_connects(1001, 80);

		failing_call_plan(CALL_WRITEV, -1, 1, errors[i]);
		rig_rw(&peer, "bytes", 5);
		assert_true(failing_call_has_come());
		rig_expect(&peer, PACKET_OP_RST);
		rig_host_reads_end(&peer);
		expect_gone(&peer, &other, errors[i]);
		rig_close_host(&peer);
	}
}

static void test_bytes_that_the_kernel_did_not_give_end_their_stream(void **state)
{
	struct rig_peer other = rig_guest_connects(1000, 80);
	struct rig_peer peer = rig_guest_connects(1001, 80);

	(void)state;
	rig_host_writes(&peer, "bytes", 5);
	failing_call_plan(CALL_READV, -1, 1, ENOMEM);
	rig_run();
	assert_true(failing_call_has_come());
	rig_expect(&peer, PACKET_OP_RST);
	expect_gone(&peer, &other, ENOMEM);
	rig_close_host(&peer);
}

static void test_what_a_guest_that_has_gone_left_is_given_up_in_silence(void **state)
{
	struct rig_peer other = rig_guest_connects(1000, 80);
	struct rig_peer peer = rig_guest_connects(1001, 80);
	char bytes[4096];

	(void)state;
	rig_narrow(&peer);
	rig_choke(&peer, 1, 20000);
	rig_say(&peer, PACKET_OP_RST, 0);
	while (rig_has_packet())
		rig_expect(&peer, PACKET_OP_CREDIT_UPDATE);
	failing_call_plan(CALL_WRITEV, -1, 1, ENOBUFS);
	while (recv(peer.host, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
	rig_run();
	assert_true(failing_call_has_come());
	expect_gone(&peer, &other, ENOBUFS);
	rig_close_host(&peer);
}

static const struct connection *connection_of(const struct rig_peer *peer)
{
	return connection_find(&rig.device.connections, PACKET_HOST_CID, peer->guest_port,
			       peer->host_port, peer->type ? peer->type : PACKET_TYPE_STREAM);
}

static void test_messages_that_a_guest_left_are_given_up_in_silence(void **state)
{
	struct rig_peer other = rig_guest_connects(1000, 80);
	struct rig_peer peer = rig_guest_connects_messages(1001, 80);
	static char message[10000];
	struct rig_told told;

	(void)state;
	while (connection_of(&peer)->n_kept < 2)
		rig_rw_flags(&peer, message, sizeof(message), EOM);
	rig_say(&peer, PACKET_OP_RST, 0);
	while (rig_has_packet())
		rig_expect(&peer, PACKET_OP_CREDIT_UPDATE);
	failing_call_plan(CALL_WRITEV, -1, 1, ENOBUFS);
	while (recv(peer.host, message, sizeof(message), MSG_DONTWAIT) > 0)
		;
	rig_run();
	assert_true(failing_call_has_come());
	rig_expect_report(REPORT_MESSAGE_REFUSED, &told);
	assert_int_equal(told.values[3], sizeof(message));
	assert_true(rig_is_closed(peer.endpoint));
	rig_expect_no_packet();
	talk(&other);
	assert_int_equal(rig_n_chunks(), 0);
	rig_close_host(&peer);
}

/* Neither a part of it, nor what had been set aside for what the rx buffers do not hold. */
static void test_no_message_is_made_of_a_read_that_failed(void **state)
{
	/* A message that is gone, and a connection that broke. */
	static const int errors[] = {0, ECONNRESET};
	static char message[30000];

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		uint32_t len = 0;
		struct rig_peer peer;

		rig_end();
		start_with(3);
		peer = rig_guest_connects_messages(1000, 80);
		rig_host_writes(&peer, message, sizeof(message));
		failing_call_plan(CALL_READV, -1, 1, errors[i]);
		rig_run();
		assert_true(failing_call_has_come());
		rig_offer(16, 4096);
		rig_run();
		/* The next read has it. */
		while (len < sizeof(message)) {
			const struct rig_packet *packet = rig_expect(&peer, PACKET_OP_RW);

			assert_true(packet->header.len > 0);
			len += packet->header.len;
			assert_int_equal(packet->header.flags, len == sizeof(message) ? EOM : 0);
		}
		assert_int_equal(rig_n_chunks(), 0);
		rig_close_host(&peer);
		rig_run();
		rig_expect(&peer, PACKET_OP_RST);
		rig_expect_no_packet();
	}
}

/* What comes behind a message that ended its connection belongs to none. */
static void test_a_message_behind_one_that_was_refused_goes_nowhere(void **state)
{
	struct rig_peer other = rig_guest_connects(1000, 80);
	struct rig_peer peer = rig_guest_connects_messages(1001, 80);
	struct packet_header header = rig_header(&peer, PACKET_OP_RW);
	char byte;

	(void)state;
	header.len = 5;
	header.flags = EOM;
	failing_call_plan(CALL_WRITEV, -1, 1, EMSGSIZE);
	rig_put(&header, "first");
	rig_send(&header, "other");
	assert_true(failing_call_has_come());
	rig_expect(&peer, PACKET_OP_RST);
	rig_expect_report(REPORT_MESSAGE_REFUSED, NULL);
	assert_true(rig_is_closed(peer.endpoint));
	assert_int_equal(recv(peer.host, &byte, 1, 0), 0);
	rig_expect_no_packet();
	talk(&other);
	rig_close_host(&peer);
}

/* Nor is a guest told twice that it has ended. */
static void test_a_packet_against_the_rules_behind_the_end_is_no_news(void **state)
{
	struct rig_peer peer = rig_guest_connects_messages(1001, 80);
	struct packet_header header = rig_header(&peer, PACKET_OP_RW);
	static char many[60000]; /* bytes, where there is credit for fewer */

	(void)state;
	header.len = 5;
	header.flags = EOM;
	failing_call_plan(CALL_WRITEV, -1, 1, EMSGSIZE);
	rig_put(&header, "first");
	header.len = sizeof(many);
	rig_send(&header, many);
	assert_true(failing_call_has_come());
	rig_expect(&peer, PACKET_OP_RST);
	rig_expect_no_packet();
	rig_expect_report(REPORT_MESSAGE_REFUSED, NULL);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_REPORT, NULL));
	rig_close_host(&peer);
}

static void test_a_connection_that_breaks_again_has_ended(void **state)
{
	struct rig_peer peer = rig_guest_connects_messages(1001, 80);

	(void)state;
	rig_rw_flags(&peer, "unread", 6, EOM);
	rig_host_writes(&peer, "lost", 4);
	rig_close_host(&peer); /* which the socket says first of all */
	failing_call_plan(CALL_RECVFROM, -1, 2, ECONNRESET);
	rig_run();
	assert_true(failing_call_has_come());
	rig_expect(&peer, PACKET_OP_RST);
	assert_true(rig_is_closed(peer.endpoint));
	rig_expect_no_packet();
}

/* An empty message of another guest is a byte in the socket. */
static void test_no_empty_message_is_made_of_a_read_that_failed(void **state)
{
	static const int errors[] = {0, EINTR, EAGAIN, ECONNRESET};

	(void)state;
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		struct rig_peer peer = {
			.cid = SIBLING,
			.type = PACKET_TYPE_SEQPACKET,
			.guest_port = 22,
			.host_port = 5000,
		};
		const struct rig_packet *packet;

		rig_sibling_asks(&peer);
		rig_run();
		rig_expect(&peer, PACKET_OP_REQUEST);
		rig_say(&peer, PACKET_OP_RESPONSE, 0);
		rig_host_writes(&peer, "", 1);
		failing_call_plan(CALL_READV, -1, 1, errors[i]);
		rig_run();
		assert_true(failing_call_has_come());
		if (errors[i] == EAGAIN) {
			rig_expect_no_packet();
			rig_host_writes(&peer, "x", 2); /* the next event */
			rig_run();
		}
		packet = rig_expect(&peer, PACKET_OP_RW);
		assert_int_equal(packet->header.len, 0);
		assert_int_equal(packet->header.flags, EOM);
		if (errors[i] == EAGAIN)
			assert_int_equal(rig_expect(&peer, PACKET_OP_RW)->header.len, 1);
		rig_expect_no_packet();
		rig_say(&peer, PACKET_OP_RST, 0);
		rig_close_host(&peer);
	}
}

static void test_a_ring_whose_kicks_cannot_be_watched_is_looked_at(void **state)
{
	struct rig_told told;

	(void)state;
	rig_run();
	assert_int_equal(device_timeout(&rig.device), -1);
	failing_call_plan(CALL_EPOLL_CTL, -1, 2, ENOSPC); /* behind that of the old one */
	assert_int_equal(rig_ring_start(RING_TX, rig_used_index(RING_TX), false), 0);
	assert_true(failing_call_has_come());
	rig_expect_report(REPORT_RING_POLLED, &told);
	assert_int_equal(told.values[1], RING_TX);
	assert_int_equal(told.values[2], ENOSPC);
	assert_int_equal(device_timeout(&rig.device), 1);
	assert_true(rig.device.rings[RING_TX].kick < 0);
}

static void test_a_socket_that_a_successor_cannot_watch_keeps_its_worker(void **state)
{
	struct rig_peer peers[] = {rig_guest_connects(1000, 80), rig_host_connects(1001)};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		uint32_t endpoint = peers[i].endpoint;

		rig_make_other();
		failing_call_plan(CALL_EPOLL_CTL, rig_other.device->sockets.all[endpoint] - 1, 1,
				  ENOSPC);
		rig_relay(NULL, UINT32_MAX);
		assert_int_equal(rig_check_other(), -EBADMSG);
		assert_true(failing_call_has_come());
		rig_resume_first();
	}
	talk(&peers[0]);
	talk(&peers[1]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_call_that_was_interrupted_is_made_again),
		TEST(test_what_finds_no_room_in_the_channel_is_said_once_and_in_its_turn),
		TEST(test_a_handover_goes_on_where_the_channel_had_no_room),
		TEST(test_a_host_program_whose_socket_cannot_be_watched_is_let_go),
		TEST(test_a_guest_is_refused_whose_socket_cannot_be_watched),
		TEST(test_a_guest_is_not_asked_for_a_sibling_that_cannot_be_watched),
		TEST(test_a_line_that_cannot_be_read_ends_the_handshake),
		TEST(test_bytes_that_the_kernel_did_not_take_end_their_stream),
		TEST(test_bytes_that_the_kernel_did_not_give_end_their_stream),
		TEST(test_what_a_guest_that_has_gone_left_is_given_up_in_silence),
		TEST(test_messages_that_a_guest_left_are_given_up_in_silence),
		TEST(test_no_message_is_made_of_a_read_that_failed),
		TEST(test_a_message_behind_one_that_was_refused_goes_nowhere),
		TEST(test_a_packet_against_the_rules_behind_the_end_is_no_news),
		TEST(test_a_connection_that_breaks_again_has_ended),
		TEST(test_no_empty_message_is_made_of_a_read_that_failed),
		TEST(test_a_ring_whose_kicks_cannot_be_watched_is_looked_at),
		TEST(test_a_socket_that_a_successor_cannot_watch_keeps_its_worker),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
