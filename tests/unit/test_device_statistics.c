/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/device_rig.h"

static int set_up(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){.n_connections = 100, .n_handshakes = 100, .num = 1024});
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_end();
	return 0;
}

static void ask_counters(void)
{
	Vsockd__CountersQuery query = VSOCKD__COUNTERS_QUERY__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	query.query = 7;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_COUNTERS_QUERY;
	envelope.counters_query = &query;
	rig.n_counters = 0;
	rig_post(&envelope, -1);
	rig_run();
	assert_int_equal(rig.n_counters, COUNTER_MAX);
}

/* Where the next question goes on. */
static uint32_t ask_connections(uint32_t first)
{
	Vsockd__ConnectionsQuery query = VSOCKD__CONNECTIONS_QUERY__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	struct rig_told end;

	query.query = 9;
	query.first = first;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_CONNECTIONS_QUERY;
	envelope.connections_query = &query;
	rig_post(&envelope, -1);
	rig_run();
	rig_expect_told(VSOCKD__ENVELOPE__BODY_CONNECTIONS_END, &end);
	assert_int_equal(end.values[0], 9);
	return (uint32_t)end.values[1];
}

static void abort_endpoint(uint32_t endpoint)
{
	Vsockd__Abort abort = VSOCKD__ABORT__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	abort.endpoint = endpoint;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_ABORT;
	envelope.abort = &abort;
	rig_post(&envelope, -1);
	rig_run();
}

static void test_bytes_and_packets_are_counted_both_ways(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(10, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_rw(&peer, "to the host", 11);
	rig_host_reads(&peer, "to the host", 11);
	rig_host_writes(&peer, "to the guest", 12);
	rig_run();
	rig_expect(&peer, PACKET_OP_RW);
	ask_counters();
	assert_int_equal(rig.counters[COUNTER_FROM_GUEST_BYTES], 11);
	assert_int_equal(rig.counters[COUNTER_FROM_GUEST_PACKETS], 2); /* REQUEST, RW */
	assert_int_equal(rig.counters[COUNTER_TO_GUEST_BYTES], 12);
	assert_int_equal(rig.counters[COUNTER_TO_GUEST_PACKETS], 2); /* RESPONSE, RW */
	assert_int_equal(rig.counters[COUNTER_GUEST_CONNECTED], 1);
	assert_int_equal(rig.counters[COUNTER_HOST_CONNECTED], 0);
}

static void test_connections_are_counted_by_how_they_ended(void **state)
{
	struct rig_peer refused, asked;
	int host;

	(void)state;
	rig_offer(20, 4096);
	refused = rig_ask(1000, 80);
	rig_refused(&refused, -ECONNREFUSED);
	rig_run();
	rig_expect(&refused, PACKET_OP_RST);
	rig_host_connects(5);
	asked = rig_host_asks(6);
	rig_say(&asked, PACKET_OP_RST, 0);
	rig_host_asks(7);
	rig_sleep(CONNECTION_CONNECT_MS);
	rig_accept(&host);
	rig_run();
	rig_sleep(CONNECTION_HANDSHAKE_MS);
	ask_counters();
	assert_int_equal(rig.counters[COUNTER_GUEST_REFUSED], 1);
	assert_int_equal(rig.counters[COUNTER_HOST_CONNECTED], 1);
	assert_int_equal(rig.counters[COUNTER_HOST_REFUSED], 1);
	assert_int_equal(rig.counters[COUNTER_HOST_NO_ANSWER], 1);
	assert_int_equal(rig.counters[COUNTER_HANDSHAKE_TIMEOUT], 1);
}

static void test_the_time_that_a_connection_took_is_in_its_bucket(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(20, 4096);
	rig_guest_connects(1000, 80);
	peer = rig_ask(1001, 80);
	rig_sleep(15);
	rig_connected(&peer);
	peer = rig_ask(1002, 80);
	rig_sleep(5000);
	rig_connected(&peer);
	ask_counters();
	assert_int_equal(rig.counters[COUNTER_GUEST_CONNECT_TIMES], 1);
	assert_int_equal(rig.counters[COUNTER_GUEST_CONNECT_TIMES + 4], 1); /* up to 20 ms */
	assert_int_equal(rig.counters[COUNTER_GUEST_CONNECT_TIMES + COUNTER_TIMES - 1], 1);
	assert_in_range(rig.counters[COUNTER_GUEST_CONNECT_MS], 5015, 5030);
}

static void test_waiting_for_credit_and_for_buffers_is_counted(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(1, 4096);
	peer = rig_guest_connects(1000, 80); /* takes the buffer */
	rig_host_writes(&peer, "x", 1);
	rig_run();
	ask_counters();
	assert_true(rig.counters[COUNTER_RX_STARVED] > 0);
	assert_int_equal(rig.counters[COUNTER_CREDIT_STALLS], 0);
	peer.buf_alloc = 0;
	rig_offer(10, 4096);
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_host_writes(&peer, "y", 1);
	rig_run();
	ask_counters();
	assert_true(rig.counters[COUNTER_CREDIT_STALLS] > 0);
}

static void test_a_connection_is_told_with_what_it_carried(void **state)
{
	struct rig_peer peer;
	struct rig_told told;
	int host;
	uint32_t handshake;

	(void)state;
	assert_int_equal(ask_connections(0), CONNECTIONS_END);
	rig_offer(10, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_rw(&peer, "abc", 3);
	handshake = rig_accept(&host);
	assert_int_equal(ask_connections(0), CONNECTIONS_END);
	rig_expect_told(VSOCKD__ENVELOPE__BODY_CONNECTION_INFO, &told);
	assert_int_equal(told.values[0], peer.endpoint);
	assert_int_equal(told.values[1], CONNECTION_REPORT_OPEN);
	assert_int_equal(told.values[2], 0);
	assert_int_equal(told.values[3], 3);
	rig_expect_told(VSOCKD__ENVELOPE__BODY_CONNECTION_INFO, &told);
	assert_int_equal(told.values[0], handshake);
	assert_int_equal(told.values[1], CONNECTION_REPORT_HANDSHAKE);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECTION_INFO, &told));
}

static void test_many_connections_are_told_in_pieces(void **state)
{
	uint32_t next = 0, n_told = 0, n_questions = 0;
	struct rig_told told;
	int host;

	(void)state;
	for (uint32_t i = 0; i < 100; i++)
		rig_accept(&host);
	while (next != CONNECTIONS_END) {
		uint32_t n = 0;

		next = ask_connections(next);
		while (rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECTION_INFO, &told))
			n++;
		assert_in_range(n, 0, CONNECTIONS_PER_QUERY);
		n_told += n;
		n_questions++;
	}
	assert_int_equal(n_told, 100);
	assert_int_equal(n_questions, 4);
	/* Behind the end there is nothing, wherever that is. */
	assert_int_equal(ask_connections(1000000), CONNECTIONS_END);
}

static void expect_state(uint32_t endpoint, enum connection_report state)
{
	struct rig_told told;

	rig_expect_told(VSOCKD__ENVELOPE__BODY_CONNECTION_INFO, &told);
	assert_int_equal(told.values[0], endpoint);
	assert_int_equal(told.values[1], state);
}

static void test_each_connection_is_told_in_its_state(void **state)
{
	struct rig_peer open, closing, draining, asked, asking, gone;
	uint32_t handshake;
	int host;

	(void)state;
	rig_offer(60, 4096);
	open = rig_guest_connects(1000, 80);
	closing = rig_guest_connects(1001, 80);
	draining = rig_guest_connects(1002, 80);
	asked = rig_host_asks(1003);
	asking = rig_ask(1004, 80);
	gone = rig_ask(1005, 80);
	handshake = rig_accept(&host);
	rig_close_host(&closing);
	rig_narrow(&draining);
	rig_choke(&draining, 1, 5000);
	rig_say(&draining, PACKET_OP_RST, 0);
	rig_say(&gone, PACKET_OP_RST, 0); /* which nobody asks about: the front answers soon */
	assert_int_equal(ask_connections(0), CONNECTIONS_END);
	expect_state(open.endpoint, CONNECTION_REPORT_OPEN);
	expect_state(closing.endpoint, CONNECTION_REPORT_CLOSING);
	expect_state(draining.endpoint, CONNECTION_REPORT_DRAINING);
	expect_state(asked.endpoint, CONNECTION_REPORT_ASKING_GUEST);
	expect_state(0, CONNECTION_REPORT_ASKING_HOST); /* it has no socket yet */
	expect_state(handshake, CONNECTION_REPORT_HANDSHAKE);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECTION_INFO, NULL));
	rig_close_host(&asking);
}

/* However long ago its table was full, a guest does not wait for all of it. */
static void test_a_question_is_about_a_part_of_the_table(void **state)
{
	enum { N = CONNECTIONS_LOOKED_AT + 100 };
	struct rig_peer last = {0};

	tear_down(state);
	rig_start(&(struct rig_options){.n_connections = N, .buffer_size = 4096, .num = 256});
	rig.after_run = NULL;
	for (uint32_t i = 0; i < N; i++)
		last = rig_ask(1000 + i, 80);
	for (uint32_t i = 0; i + 1 < N; i++) {
		struct rig_peer peer = {.request = i, .host = -1};

		rig_offer(1, 4096);
		rig_refused(&peer, -ECONNREFUSED);
		rig_run();
		rig_expect_rst(PACKET_HOST_CID, 80, 1000 + i, PACKET_TYPE_STREAM);
	}
	assert_int_equal(ask_connections(0), CONNECTIONS_LOOKED_AT);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECTION_INFO, NULL));
	assert_int_equal(ask_connections(CONNECTIONS_LOOKED_AT), CONNECTIONS_END);
	expect_state(0, CONNECTION_REPORT_ASKING_HOST);
	rig_close_host(&last);
}

static void test_a_connection_is_ended_on_both_sides_on_request(void **state)
{
	struct rig_peer peer, other, draining;
	int host;
	uint32_t handshake;

	(void)state;
	rig_offer(10, 4096);
	peer = rig_guest_connects(1000, 80);
	other = rig_guest_connects(1001, 80);
	handshake = rig_accept(&host);
	abort_endpoint(peer.endpoint);
	rig_expect(&peer, PACKET_OP_RST);
	rig_host_reads_end(&peer);
	assert_true(rig_is_closed(peer.endpoint));
	abort_endpoint(handshake);
	assert_true(rig_is_closed(handshake));
	rig_expect_no_packet();
	/* Whose guest knows of it no more is told nothing. */
	draining = rig_guest_connects(1002, 80);
	rig_narrow(&draining);
	rig_offer(20, 4096);
	rig_choke(&draining, 1, 5000);
	rig_say(&draining, PACKET_OP_RST, 0);
	while (rig_has_packet())
		rig_expect(&draining, PACKET_OP_CREDIT_UPDATE);
	assert_false(rig_is_closed(draining.endpoint));
	abort_endpoint(draining.endpoint);
	assert_true(rig_is_closed(draining.endpoint));
	rig_expect_no_packet();
	/* It is gone, and so is nothing else. */
	abort_endpoint(peer.endpoint);
	abort_endpoint(4000);
	rig_rw(&other, "on", 2);
	rig_host_reads(&other, "on", 2);
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_RIG(test_bytes_and_packets_are_counted_both_ways),
		WITH_RIG(test_connections_are_counted_by_how_they_ended),
		WITH_RIG(test_the_time_that_a_connection_took_is_in_its_bucket),
		WITH_RIG(test_waiting_for_credit_and_for_buffers_is_counted),
		WITH_RIG(test_a_connection_is_told_with_what_it_carried),
		WITH_RIG(test_many_connections_are_told_in_pieces),
		WITH_RIG(test_each_connection_is_told_in_its_state),
		WITH_RIG(test_a_question_is_about_a_part_of_the_table),
		WITH_RIG(test_a_connection_is_ended_on_both_sides_on_request),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
