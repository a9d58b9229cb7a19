/* SPDX-License-Identifier: Apache-2.0 */

/* Another guest at the other end: what one worker says to its guest and to the front. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/handover_rig.h"

#define SIBLING 77u
#define OTHER	78u

#define EOM 1u
#define EOR 2u

static const struct rig_options rig_options = {
	.n_connections = 8,
	.n_handshakes = 4,
	.buffer_size = 64 * 1024,
	.num = 256,
	.features = RIG_F_EVENT_IDX | RIG_F_SEQPACKET,
};

static int set_up(void **state)
{
	(void)state;
	rig_start(&rig_options);
	rig_offer(32, 4096);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_end();
	return 0;
}

static struct rig_peer connect_to(uint32_t cid)
{
	struct rig_peer peer = rig_ask_sibling(1000, cid, 80);

	rig_connected(&peer);
	rig_run();
	rig_expect(&peer, PACKET_OP_RESPONSE);
	return peer;
}

static struct rig_peer be_asked(void)
{
	struct rig_peer peer = {.cid = SIBLING, .guest_port = 22, .host_port = 5000};

	rig_sibling_asks(&peer);
	rig_run();
	rig_expect(&peer, PACKET_OP_REQUEST);
	return peer;
}

static struct rig_peer accept_sibling(void)
{
	struct rig_peer peer = be_asked();

	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	rig_expect_told(VSOCKD__ENVELOPE__BODY_ANSWERED, NULL);
	return peer;
}

static void expect_closed(const struct rig_peer *peer, bool is_reset)
{
	struct rig_told told = {0};

	rig_expect_told(VSOCKD__ENVELOPE__BODY_CLOSED, &told);
	assert_int_equal(told.values[0], peer->endpoint);
	assert_int_equal(told.values[1], is_reset);
}

static bool is_shut(const struct rig_peer *peer)
{
	char byte;

	return recv(peer->host, &byte, 1, MSG_PEEK) == 0;
}

static void test_the_other_guest_answers_under_its_own_cid(void **state)
{
	struct rig_peer peer = connect_to(SIBLING);
	const struct rig_packet *packet;

	(void)state;
	rig_rw(&peer, "there", 5);
	rig_host_reads(&peer, "there", 5);
	rig_host_writes(&peer, "and back", 8);
	rig_run();
	packet = rig_expect(&peer, PACKET_OP_RW);
	assert_memory_equal(packet->payload, "and back", 8);
	rig_close_host(&peer);
}

static void test_equal_ports_of_host_and_guests_are_different_connections(void **state)
{
	struct rig_peer peers[3] = {connect_to(PACKET_HOST_CID), connect_to(SIBLING),
				    connect_to(OTHER)};

	(void)state;
	for (uint32_t i = 0; i < 3; i++)
		rig_rw(&peers[i], &"abc"[i], 1);
	for (uint32_t i = 0; i < 3; i++)
		rig_host_reads(&peers[i], &"abc"[i], 1);
	rig_say(&peers[1], PACKET_OP_RST, 0);
	expect_closed(&peers[1], true);
	rig_host_writes(&peers[2], "x", 1);
	rig_run();
	rig_expect(&peers[2], PACKET_OP_RW);
	for (uint32_t i = 0; i < 3; i++)
		rig_close_host(&peers[i]);
}

static void test_a_packet_of_no_connection_to_a_guest_gets_rst_from_there(void **state)
{
	static const uint16_t ops[] = {PACKET_OP_RESPONSE, PACKET_OP_SHUTDOWN, PACKET_OP_RW};
	struct rig_peer stranger = {.cid = SIBLING, .guest_port = 5, .host_port = 6};

	(void)state;
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		rig_say(&stranger, ops[i], 0);
		rig_expect_rst(SIBLING, 6, 5, PACKET_TYPE_STREAM);
	}
	rig_say(&stranger, PACKET_OP_RST, 0);
	rig_expect_no_packet();
}

static void test_a_guest_that_accepts_is_told_of_to_the_front_alone(void **state)
{
	struct rig_peer peer = be_asked();
	struct rig_told told;

	(void)state;
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_ANSWERED, &told));
	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	rig_expect_told(VSOCKD__ENVELOPE__BODY_ANSWERED, &told);
	assert_int_equal(told.values[0], peer.endpoint);
	/* No line as a host program gets: the stream begins with the guest's bytes. */
	rig_host_reads_nothing(&peer);
	rig_rw(&peer, "first", 5);
	rig_host_reads(&peer, "first", 5);
	rig_close_host(&peer);
}

static void test_nothing_is_read_before_the_guest_accepts(void **state)
{
	struct rig_peer peer = be_asked();
	const struct rig_packet *packet;
	int n_waiting;

	(void)state;
	rig_host_writes(&peer, "early", 5);
	rig_run();
	rig_expect_no_packet();
	n_waiting = (int)recv(rig.copies[peer.endpoint], (char[8]){0}, 8, MSG_PEEK);
	assert_int_equal(n_waiting, 5);
	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	packet = rig_expect(&peer, PACKET_OP_RW);
	assert_memory_equal(packet->payload, "early", 5);
	rig_close_host(&peer);
}

static void test_a_guest_that_refuses_is_not_said_to_have_accepted(void **state)
{
	struct rig_peer peer = be_asked();

	(void)state;
	rig_say(&peer, PACKET_OP_RST, 0);
	rig_expect_report(REPORT_HANDSHAKE_FAILED, NULL);
	expect_closed(&peer, false);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_ANSWERED, NULL));
	rig_close_host(&peer);
}

static void test_a_guest_that_does_not_answer_is_reset_in_time(void **state)
{
	struct rig_peer peer = be_asked();

	(void)state;
	rig_sleep(CONNECTION_CONNECT_MS);
	rig_expect(&peer, PACKET_OP_RST);
	expect_closed(&peer, false);
	rig_close_host(&peer);
}

static void test_a_guest_that_gives_up_cancels(void **state)
{
	static const enum packet_op ops[] = {PACKET_OP_RST, PACKET_OP_SHUTDOWN};
	struct rig_told told;

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct rig_peer peer = rig_ask_sibling(1000, SIBLING, 80);

		rig_say(&peer, ops[i], PACKET_SHUTDOWN_BOTH);
		rig_expect_told(VSOCKD__ENVELOPE__BODY_CANCEL, &told);
		assert_int_equal(told.values[0], peer.request);
		if (ops[i] == PACKET_OP_SHUTDOWN)
			rig_expect(&peer, PACKET_OP_RST);
		rig_refused(&peer, -ECANCELED);
		rig_run();
		rig_expect_no_packet();
		assert_int_equal(rig.device.connections.n_used, 0);
	}
}

static void test_a_request_that_the_front_was_not_told_of_leaves_nothing(void **state)
{
	struct rig_peer peer = {.cid = SIBLING, .guest_port = 1000, .host_port = 80};
	struct packet_header request = rig_header(&peer, PACKET_OP_REQUEST);
	struct packet_header rst = rig_header(&peer, PACKET_OP_RST);

	(void)state;
	rig_put(&request, NULL);
	rig_send(&rst, NULL);
	assert_int_equal(rig.device.connections.n_used, 0);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECT, NULL));
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CANCEL, NULL));
}

static void test_a_reset_goes_through_the_front_and_not_through_the_socket(void **state)
{
	struct rig_peer peer = connect_to(SIBLING);
	int copy;

	(void)state;
	rig_rw(&peer, "last", 4);
	/* The front's duplicate keeps the socket alive until the other worker knows. */
	copy = dup(rig.copies[peer.endpoint]);
	rig_say(&peer, PACKET_OP_RST, 0);
	rig_host_reads(&peer, "last", 4);
	assert_false(is_shut(&peer));
	expect_closed(&peer, true);
	close(copy);
	assert_true(is_shut(&peer));
	rig_close_host(&peer);
}

static struct rig_peer accept_messages(void)
{
	struct rig_peer peer = {
		.type = PACKET_TYPE_SEQPACKET, .cid = SIBLING, .guest_port = 22, .host_port = 5000};

	rig_sibling_asks(&peer);
	rig_run();
	rig_expect(&peer, PACKET_OP_REQUEST);
	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	rig_expect_told(VSOCKD__ENVELOPE__BODY_ANSWERED, NULL);
	return peer;
}

static void test_a_mark_behind_each_message_says_what_ends_a_record(void **state)
{
	struct rig_peer peer = accept_messages();

	(void)state;
	rig_rw_flags(&peer, "a part", 6, EOM);
	rig_host_reads(&peer, "a part", 7);
	rig_rw_flags(&peer, "the last", 8, EOM | EOR);
	rig_host_reads(&peer, "the last\1", 9);
	rig_rw_flags(&peer, "", 0, EOM);
	rig_host_reads(&peer, "", 1);
	rig_rw_flags(&peer, "", 0, EOM | EOR);
	rig_host_reads(&peer, "\1", 1);
	rig_close_host(&peer);
}

static void expect_message(const struct rig_peer *peer, const char *text, uint32_t flags)
{
	const struct rig_packet *packet = rig_expect(peer, PACKET_OP_RW);

	assert_int_equal(packet->header.len, strlen(text));
	assert_memory_equal(packet->payload, text, strlen(text));
	assert_int_equal(packet->header.flags, flags);
}

static void test_no_mark_gets_to_the_guest(void **state)
{
	struct rig_peer peer = accept_messages();

	(void)state;
	rig_host_writes(&peer, "a part", 7);
	rig_host_writes(&peer, "the last\1", 9);
	rig_host_writes(&peer, "", 1);
	rig_host_writes(&peer, "\1", 1);
	/* Bits without a meaning are of no effect. */
	rig_host_writes(&peer, "odd\376", 4);
	rig_run();
	expect_message(&peer, "a part", EOM);
	expect_message(&peer, "the last", EOM | EOR);
	expect_message(&peer, "", EOM);
	expect_message(&peer, "", EOM | EOR);
	expect_message(&peer, "odd", EOM);
	rig_close_host(&peer);
}

static void test_empty_messages_before_the_end_are_messages(void **state)
{
	struct rig_peer peer = accept_messages();

	(void)state;
	rig_host_writes(&peer, "", 1);
	rig_host_writes(&peer, "", 1);
	assert_int_equal(shutdown(peer.host, SHUT_WR), 0);
	rig_run();
	expect_message(&peer, "", EOM);
	expect_message(&peer, "", EOM);
	rig_expect(&peer, PACKET_OP_SHUTDOWN);
	rig_close_host(&peer);
}

static void test_an_orderly_end_goes_through_the_socket(void **state)
{
	struct rig_peer peer = connect_to(SIBLING);

	(void)state;
	rig_rw(&peer, "last", 4);
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_BOTH);
	rig_expect(&peer, PACKET_OP_RST);
	rig_host_reads(&peer, "last", 4);
	assert_true(is_shut(&peer));
	expect_closed(&peer, false);
	rig_close_host(&peer);
}

static void test_half_a_close_of_the_other_guest_is_half_a_close(void **state)
{
	struct rig_peer peer = accept_sibling();
	const struct rig_packet *packet;

	(void)state;
	assert_int_equal(shutdown(peer.host, SHUT_WR), 0);
	rig_run();
	packet = rig_expect(&peer, PACKET_OP_SHUTDOWN);
	assert_int_equal(packet->header.flags, PACKET_SHUTDOWN_SEND);
	rig_rw(&peer, "still", 5);
	rig_host_reads(&peer, "still", 5);
	rig_close_host(&peer);
}

static void test_a_guest_is_told_at_once_that_the_other_reads_no_more(void **state)
{
	struct rig_peer peer = accept_sibling();
	const struct rig_packet *packet;

	(void)state;
	rig_run();
	assert_int_equal(shutdown(peer.host, SHUT_RD), 0);
	rig_run();
	packet = rig_expect(&peer, PACKET_OP_SHUTDOWN);
	assert_int_equal(packet->header.flags, PACKET_SHUTDOWN_RECEIVE);
	rig_host_writes(&peer, "still", 5);
	rig_run();
	rig_expect(&peer, PACKET_OP_RW);
	rig_close_host(&peer);
}

/* While one worker has stopped and the next one does not serve yet: no event is of use. */
static void test_a_guest_is_told_of_what_the_other_did_during_a_handover(void **state)
{
	struct rig_peer peer = accept_sibling();
	const struct rig_packet *packet;

	(void)state;
	rig_run();
	rig.after_run = NULL;
	rig_make_other();
	rig_relay(NULL, UINT32_MAX);
	assert_int_equal(shutdown(peer.host, SHUT_RD), 0);
	rig_run_worker(&rig_first);
	rig_run_worker(&rig_other);
	assert_int_equal(rig_check_other(), 0);
	rig_commit_other();
	packet = rig_expect(&peer, PACKET_OP_SHUTDOWN);
	assert_int_equal(packet->header.flags, PACKET_SHUTDOWN_RECEIVE);
	rig_close_host(&peer);
}

static void test_a_reset_of_the_other_guest_comes_behind_its_last_byte(void **state)
{
	struct rig_peer peer = accept_sibling();

	(void)state;
	rig_host_writes(&peer, "last", 4);
	rig_peer_reset(&peer);
	rig_close_host(&peer);
	rig_run();
	rig_expect(&peer, PACKET_OP_RW);
	rig_expect(&peer, PACKET_OP_RST);
	expect_closed(&peer, true);
	assert_int_equal(rig.device.connections.n_used, 0);
}

static void test_a_reset_behind_half_a_close_comes_at_once(void **state)
{
	struct rig_peer peer = accept_sibling();

	(void)state;
	assert_int_equal(shutdown(peer.host, SHUT_WR), 0);
	rig_run();
	rig_expect(&peer, PACKET_OP_SHUTDOWN);
	rig_peer_reset(&peer);
	rig_run();
	rig_expect(&peer, PACKET_OP_RST);
	expect_closed(&peer, true);
	rig_close_host(&peer);
}

static void test_a_reset_before_the_guest_has_answered_ends_the_request(void **state)
{
	struct rig_peer peer = be_asked();

	(void)state;
	rig_peer_reset(&peer);
	rig_run();
	rig_expect(&peer, PACKET_OP_RST);
	expect_closed(&peer, false);
	rig_close_host(&peer);
}

static void test_a_reset_of_a_connection_that_is_no_more_hits_no_other(void **state)
{
	struct rig_peer peer = accept_sibling(), late = peer;

	(void)state;
	late.endpoint = peer.endpoint + 1; /* the same ports, another life */
	rig_peer_reset(&late);
	late.host_port++;
	rig_peer_reset(&late);
	late = peer;
	late.cid = OTHER;
	rig_peer_reset(&late);
	rig_run();
	rig_expect_no_packet();
	rig_rw(&peer, "alive", 5);
	rig_host_reads(&peer, "alive", 5);
	rig_close_host(&peer);
}

static void test_a_reset_finds_only_a_connection_that_still_is(void **state)
{
	struct rig_peer closing = accept_sibling();

	(void)state;
	/* This guest has said goodbye, and what it sent is not read yet. */
	rig_narrow(&closing);
	rig_choke(&closing, 1, 5000);
	rig_say(&closing, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_BOTH);
	while (rig_has_packet())
		rig_take(&(struct rig_packet){0});
	rig_peer_reset(&closing);
	rig_run();
	rig_expect_no_packet();
	assert_false(rig_is_closed(closing.endpoint));
	rig_close_host(&closing);
	rig_run();

	/* Our end was said, and its answer is awaited. */
	closing = accept_sibling();
	rig_close_host(&closing);
	rig_run();
	rig_expect(&closing, PACKET_OP_SHUTDOWN);
	rig_peer_reset(&closing);
	rig_run();
	rig_expect_no_packet();
	assert_false(rig_is_closed(closing.endpoint));
	rig_say(&closing, PACKET_OP_RST, 0);
	assert_true(rig_is_closed(closing.endpoint));
}

static void test_a_guest_is_asked_for_nothing_that_it_cannot_do(void **state)
{
	struct rig_peer messages = {
		.cid = SIBLING,
		.type = PACKET_TYPE_SEQPACKET,
		.guest_port = 22,
		.host_port = 5000,
	};
	struct rig_peer stream = {.cid = SIBLING, .guest_port = 22, .host_port = 5000};

	/* A driver that knows streams only. */
	tear_down(state);
	rig_start(&(struct rig_options){.features = RIG_F_STREAM});
	rig_offer(8, 4096);
	rig_sibling_asks(&messages);
	rig_run();
	rig_expect_no_packet();
	expect_closed(&messages, false);
	rig_close_host(&messages);

	/* One for whose bytes there is no memory. */
	rig_limit(&(struct rig_options){.buffer_memory = 1});
	rig_sibling_asks(&stream);
	rig_run();
	rig_expect_no_packet();
	rig_expect_report(REPORT_MEMORY_LIMIT, NULL);
	expect_closed(&stream, false);
	rig_close_host(&stream);
}

static void test_a_guest_that_lost_its_state_may_use_its_port_again(void **state)
{
	struct rig_peer old = accept_sibling(), fresh = old;

	(void)state;
	/* Its machine was reset, but this guest reads so slowly that it does not know. */
	rig_peer_reset(&old);
	rig_sibling_asks(&fresh);
	rig_run();
	rig_expect(&old, PACKET_OP_RST);
	rig_expect(&fresh, PACKET_OP_REQUEST);
	expect_closed(&old, true);
	rig_close_host(&old);
	rig_close_host(&fresh);
}

static void test_a_connection_of_the_guest_itself_is_not_given_up_for_a_request(void **state)
{
	struct rig_peer own = connect_to(SIBLING), theirs = own;

	(void)state;
	rig_sibling_asks(&theirs);
	rig_run();
	rig_expect_no_packet();
	expect_closed(&theirs, false);
	rig_rw(&own, "alive", 5);
	rig_host_reads(&own, "alive", 5);
	rig_close_host(&own);
	rig_close_host(&theirs);
}

static void test_a_device_that_is_reset_resets_the_other_end(void **state)
{
	struct rig_peer peers[2] = {connect_to(SIBLING), accept_sibling()};
	struct rig_told told;

	(void)state;
	rig_reset();
	for (uint32_t i = 0; i < 2; i++) {
		rig_expect_told(VSOCKD__ENVELOPE__BODY_CLOSED, &told);
		assert_true(told.values[1]);
	}
	rig_expect_no_packet();
	for (uint32_t i = 0; i < 2; i++)
		rig_close_host(&peers[i]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_the_other_guest_answers_under_its_own_cid),
		TEST(test_equal_ports_of_host_and_guests_are_different_connections),
		TEST(test_a_packet_of_no_connection_to_a_guest_gets_rst_from_there),
		TEST(test_a_guest_that_accepts_is_told_of_to_the_front_alone),
		TEST(test_nothing_is_read_before_the_guest_accepts),
		TEST(test_a_guest_that_refuses_is_not_said_to_have_accepted),
		TEST(test_a_guest_that_does_not_answer_is_reset_in_time),
		TEST(test_a_guest_that_gives_up_cancels),
		TEST(test_a_request_that_the_front_was_not_told_of_leaves_nothing),
		TEST(test_a_reset_goes_through_the_front_and_not_through_the_socket),
		TEST(test_a_mark_behind_each_message_says_what_ends_a_record),
		TEST(test_no_mark_gets_to_the_guest),
		TEST(test_empty_messages_before_the_end_are_messages),
		TEST(test_an_orderly_end_goes_through_the_socket),
		TEST(test_half_a_close_of_the_other_guest_is_half_a_close),
		TEST(test_a_guest_is_told_at_once_that_the_other_reads_no_more),
		TEST(test_a_guest_is_told_of_what_the_other_did_during_a_handover),
		TEST(test_a_reset_of_the_other_guest_comes_behind_its_last_byte),
		TEST(test_a_reset_behind_half_a_close_comes_at_once),
		TEST(test_a_reset_before_the_guest_has_answered_ends_the_request),
		TEST(test_a_reset_of_a_connection_that_is_no_more_hits_no_other),
		TEST(test_a_reset_finds_only_a_connection_that_still_is),
		TEST(test_a_guest_is_asked_for_nothing_that_it_cannot_do),
		TEST(test_a_guest_that_lost_its_state_may_use_its_port_again),
		TEST(test_a_connection_of_the_guest_itself_is_not_given_up_for_a_request),
		TEST(test_a_device_that_is_reset_resets_the_other_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
