/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/connection.h"
#include "worker/packet.h"

#define ALL_TIMERS (CONNECTION_TIMERS_GUEST | CONNECTION_TIMERS_DRAINING)

#define N	   8 /* allowed; the table has twice as many */
#define FIRST_PORT (UINT32_C(1) << 30)
#define LAST_PORT  ((UINT32_C(1) << 31) - 1)

static struct connections table;

static int set_up(void **state)
{
	(void)state;
	assert_true(connections_init(&table, N));
	connections_assign(&table, N, 0);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	free(table.all);
	free(table.buckets);
	return 0;
}

static struct connection *take(uint32_t guest_port, uint32_t host_port)
{
	struct connection *connection =
		connection_take(&table, CONNECTION_ESTABLISHED, table.n_max);

	if (connection) {
		connection->guest_port = guest_port;
		connection->host_port = host_port;
		connection->type = PACKET_TYPE_STREAM;
		connection_hash(&table, connection);
	}
	return connection;
}

/* ---- the table ---- */

static void test_a_taken_connection_is_fresh(void **state)
{
	struct connection *connection;

	(void)state;
	connection = take(1, 2);
	connection->due = connection->tell = 0xff;
	connection->is_deaf = true;
	connection->early_len = 5;
	connection_arm(&table, connection, CONNECTION_TIMER_CLOSING, 7);
	link_append(&table.ready, &connection->ready_link);
	link_append(&table.flush, &connection->flush_link);
	link_append(&table.tell, &connection->tell_link);
	connection_free(&table, connection);
	assert_int_equal(connection->state, CONNECTION_FREE);
	assert_true(link_is_empty(&table.ready));
	assert_true(link_is_empty(&table.flush));
	assert_true(link_is_empty(&table.tell));
	assert_int_equal(connections_deadline(&table, ALL_TIMERS), UINT64_MAX);
	assert_null(connection_find(&table, PACKET_HOST_CID, 1, 2, PACKET_TYPE_STREAM));

	assert_ptr_equal(connection_take(&table, CONNECTION_HANDSHAKE, N), connection);
	assert_int_equal(connection->state, CONNECTION_HANDSHAKE);
	assert_int_equal(connection->due, 0);
	assert_int_equal(connection->tell, 0);
	assert_false(connection->is_deaf);
	assert_false(connection->is_hashed);
	assert_int_equal(connection->early_len, 0);
	assert_int_equal(connection->timer, CONNECTION_TIMERS);
	assert_int_equal(connection->fd, -1);
}

static void test_each_life_of_an_entry_has_another_generation(void **state)
{
	uint32_t before = 0;

	(void)state;
	for (uint32_t i = 0; i < 10; i++) {
		struct connection *connection = take(1, 2);

		assert_ptr_equal(connection, table.all);
		assert_int_not_equal(connection->generation, before);
		before = connection->generation;
		connection_free(&table, connection);
	}
}

static void test_a_limit_is_kept_and_what_is_freed_can_be_taken(void **state)
{
	struct connection *connections[2 * N];

	(void)state;
	for (uint32_t i = 0; i < N; i++) {
		connections[i] = connection_take(&table, CONNECTION_REQUESTED, N);
		assert_non_null(connections[i]);
		assert_int_equal(connection_index(&table, connections[i]), i);
	}
	assert_null(connection_take(&table, CONNECTION_REQUESTED, N));
	/* Sockets that the front counted have room beyond the guest's limit. */
	for (uint32_t i = N; i < 2 * N; i++) {
		connections[i] = connection_take(&table, CONNECTION_HANDSHAKE, table.n_max);
		assert_non_null(connections[i]);
	}
	assert_null(connection_take(&table, CONNECTION_HANDSHAKE, table.n_max));
	assert_int_equal(table.n_used, 2 * N);

	connection_free(&table, connections[3]);
	assert_null(connection_take(&table, CONNECTION_REQUESTED, N));
	assert_ptr_equal(connection_take(&table, CONNECTION_HANDSHAKE, table.n_max),
			 connections[3]);
}

static void test_what_was_never_used_stays_untouched(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 100; i++) {
		struct connection *first = take(1, 2), *second = take(3, 4);

		connection_free(&table, first);
		connection_free(&table, second);
	}
	assert_int_equal(table.n_touched, 2);
	assert_int_equal(table.n_used, 0);
}

/* ---- by ports ---- */

static void test_both_ports_make_the_pair(void **state)
{
	struct connection *first, *second, *third;

	(void)state;
	first = take(1, 2);
	second = take(2, 1);
	third = take(1, 3);
	assert_ptr_equal(connection_find(&table, PACKET_HOST_CID, 1, 2, PACKET_TYPE_STREAM), first);
	assert_ptr_equal(connection_find(&table, PACKET_HOST_CID, 2, 1, PACKET_TYPE_STREAM),
			 second);
	assert_ptr_equal(connection_find(&table, PACKET_HOST_CID, 1, 3, PACKET_TYPE_STREAM), third);
	assert_null(connection_find(&table, PACKET_HOST_CID, 3, 1, PACKET_TYPE_STREAM));
	assert_null(connection_find(&table, PACKET_HOST_CID, 0, 0, PACKET_TYPE_STREAM));
	assert_null(connection_find(&table, PACKET_HOST_CID, UINT32_MAX, UINT32_MAX,
				    PACKET_TYPE_STREAM));
}

/* Pairs that fall into one bucket, found by trying. */
static void find_collisions(uint32_t *ports, uint32_t n)
{
	uint32_t found = 0;
	struct connection *first = take(7, 0);
	struct connection **bucket = NULL;

	for (uint32_t i = 0; i < table.n_buckets; i++)
		if (table.buckets[i] == first)
			bucket = &table.buckets[i];
	assert_non_null(bucket);
	connection_free(&table, first);
	for (uint32_t port = 0; found < n; port++) {
		struct connection *connection = take(7, port);

		if (*bucket == connection)
			ports[found++] = port;
		connection_free(&table, connection);
	}
}

static void test_connections_of_one_bucket_are_found_and_removed_in_any_order(void **state)
{
	static const uint8_t orders[][4] = {{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 2, 0, 3}, {2, 0, 3, 1}};
	uint32_t ports[5];

	(void)state;
	find_collisions(ports, 5);
	for (size_t i = 0; i < sizeof(orders) / sizeof(orders[0]); i++) {
		struct connection *connections[4];

		for (uint32_t k = 0; k < 4; k++)
			connections[k] = take(7, ports[k]);
		for (uint32_t k = 0; k < 4; k++) {
			connection_unhash(&table, connections[orders[i][k]]);
			connection_unhash(&table, connections[orders[i][k]]); /* again: no harm */
			for (uint32_t m = 0; m < 4; m++) {
				uint32_t number = orders[i][m];

				assert_ptr_equal(connection_find(&table, PACKET_HOST_CID, 7,
								 ports[number], PACKET_TYPE_STREAM),
						 m <= k ? NULL : connections[number]);
			}
			assert_null(connection_find(&table, PACKET_HOST_CID, 7, ports[4],
						    PACKET_TYPE_STREAM));
		}
		for (uint32_t k = 0; k < 4; k++)
			connection_free(&table, connections[k]);
	}
}

static void test_an_unhashed_connection_makes_way_for_its_successor(void **state)
{
	struct connection *old, *successor;

	(void)state;
	old = take(1, 2);
	connection_unhash(&table, old);
	successor = take(1, 2);
	assert_ptr_equal(connection_find(&table, PACKET_HOST_CID, 1, 2, PACKET_TYPE_STREAM),
			 successor);
	connection_free(&table, old);
	assert_ptr_equal(connection_find(&table, PACKET_HOST_CID, 1, 2, PACKET_TYPE_STREAM),
			 successor);
}

static void test_ports_for_host_programs_are_in_their_range_and_wrap_inside(void **state)
{
	static const uint32_t starts[] = {0, 5, FIRST_PORT, LAST_PORT, 0x12345678, UINT32_MAX};

	(void)state;
	for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) {
		connections_assign(&table, N, starts[i]);
		assert_int_equal(connection_next_port(&table, 1),
				 FIRST_PORT + starts[i] % FIRST_PORT);
	}
	connections_assign(&table, N, LAST_PORT);
	assert_int_equal(connection_next_port(&table, 1), LAST_PORT);
	assert_int_equal(connection_next_port(&table, 1), FIRST_PORT);
	assert_int_equal(connection_next_port(&table, 1), FIRST_PORT + 1);
}

static void test_ports_in_use_with_this_guest_port_are_skipped(void **state)
{
	(void)state;
	connections_assign(&table, N, LAST_PORT - 1);
	take(9, LAST_PORT);
	take(9, FIRST_PORT);
	take(9, FIRST_PORT + 1);
	assert_int_equal(connection_next_port(&table, 9), LAST_PORT - 1);
	assert_int_equal(connection_next_port(&table, 9), FIRST_PORT + 2);
	connections_assign(&table, N, LAST_PORT);
	assert_int_equal(connection_next_port(&table, 8), LAST_PORT); /* another guest port */
}

static struct connection *take_messages(uint32_t guest_port, uint32_t host_port)
{
	struct connection *connection =
		connection_take(&table, CONNECTION_ESTABLISHED, table.n_max);

	connection->guest_port = guest_port;
	connection->host_port = host_port;
	connection->type = PACKET_TYPE_SEQPACKET;
	connection_hash(&table, connection);
	return connection;
}

static void test_a_pair_of_ports_has_a_connection_of_each_type(void **state)
{
	struct connection *stream = take(1, 2), *messages;

	(void)state;
	assert_null(connection_find(&table, PACKET_HOST_CID, 1, 2, PACKET_TYPE_SEQPACKET));
	messages = take_messages(1, 2);
	assert_ptr_equal(connection_find(&table, PACKET_HOST_CID, 1, 2, PACKET_TYPE_SEQPACKET),
			 messages);
	assert_ptr_equal(connection_find(&table, PACKET_HOST_CID, 1, 2, PACKET_TYPE_STREAM),
			 stream);
	connection_free(&table, messages);
	assert_null(connection_find(&table, PACKET_HOST_CID, 1, 2, PACKET_TYPE_SEQPACKET));
	assert_ptr_equal(connection_find(&table, PACKET_HOST_CID, 1, 2, PACKET_TYPE_STREAM),
			 stream);
}

static void test_a_port_that_either_type_uses_is_skipped(void **state)
{
	(void)state;
	connections_assign(&table, N, FIRST_PORT);
	take(9, FIRST_PORT);
	take_messages(9, FIRST_PORT + 1);
	assert_int_equal(connection_next_port(&table, 9), FIRST_PORT + 2);
}

/* ---- timers ---- */

static const uint32_t durations[CONNECTION_TIMERS] = {
	CONNECTION_HANDSHAKE_MS, CONNECTION_CONNECT_MS, CONNECTION_RETRY_MS,
	CONNECTION_CREDIT_MS,	 CONNECTION_MESSAGE_MS, CONNECTION_CLOSING_MS,
	CONNECTION_DRAINING_MS,
};

static void test_a_timer_ends_after_its_time_and_not_before(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < CONNECTION_TIMERS; i++) {
		struct connection *connection = take(1, i);
		uint64_t deadline = 1000 + durations[i];
		enum connection_timer timer = CONNECTION_TIMERS;

		connection_arm(&table, connection, (enum connection_timer)i, 1000);
		assert_int_equal(connections_deadline(&table, ALL_TIMERS), deadline);
		assert_null(connections_expired(&table, ALL_TIMERS, deadline - 1, &timer));
		assert_int_equal(timer, CONNECTION_TIMERS);
		assert_ptr_equal(connections_expired(&table, ALL_TIMERS, deadline, &timer),
				 connection);
		assert_int_equal(timer, i);
		/* Disarmed: it does not end twice. */
		assert_null(connections_expired(&table, ALL_TIMERS, UINT64_MAX, &timer));
		assert_int_equal(connection->timer, CONNECTION_TIMERS);
		assert_int_equal(connections_deadline(&table, ALL_TIMERS), UINT64_MAX);
	}
}

static void test_timers_of_a_kind_end_in_the_order_in_which_they_were_armed(void **state)
{
	(void)state;
	for (uint32_t kind = 0; kind < CONNECTION_TIMERS; kind++) {
		struct connection *connections[5];
		enum connection_timer timer;

		for (uint32_t i = 0; i < 5; i++) {
			connections[i] = take(kind, i);
			connection_arm(&table, connections[i], (enum connection_timer)kind, i);
		}
		/* Armed anew: now the last. Disarmed: not at all. */
		connection_arm(&table, connections[0], (enum connection_timer)kind, 5);
		connection_disarm(connections[2]);
		connection_disarm(connections[2]);
		assert_int_equal(connections_deadline(&table, ALL_TIMERS), 1 + durations[kind]);
		for (uint32_t i = 1; i <= 5; i++) {
			uint64_t now = i + durations[kind];

			if (i == 2)
				continue;
			assert_ptr_equal(connections_expired(&table, ALL_TIMERS, now, &timer),
					 connections[i % 5]);
			assert_null(connections_expired(&table, ALL_TIMERS, now, &timer));
		}
		for (uint32_t i = 0; i < 5; i++)
			connection_free(&table, connections[i]);
	}
}

static void test_a_connection_has_one_timer(void **state)
{
	struct connection *connection = take(1, 2);
	enum connection_timer timer;

	(void)state;
	connection_arm(&table, connection, CONNECTION_TIMER_CREDIT, 0);
	connection_arm(&table, connection, CONNECTION_TIMER_DRAINING, 0);
	assert_int_equal(connections_deadline(&table, ALL_TIMERS), CONNECTION_DRAINING_MS);
	assert_ptr_equal(connections_expired(&table, ALL_TIMERS, UINT64_MAX, &timer), connection);
	assert_int_equal(timer, CONNECTION_TIMER_DRAINING);
	assert_null(connections_expired(&table, ALL_TIMERS, UINT64_MAX, &timer));
}

static void test_only_the_timers_asked_for_are_looked_at(void **state)
{
	struct connection *connections[CONNECTION_TIMERS];
	enum connection_timer timer;

	(void)state;
	for (uint32_t i = 0; i < CONNECTION_TIMERS; i++) {
		connections[i] = take(1, i);
		connection_arm(&table, connections[i], (enum connection_timer)i, 0);
	}
	for (uint32_t i = 0; i < CONNECTION_TIMERS; i++)
		assert_int_equal(connections_deadline(&table, 1u << i), durations[i]);
	assert_int_equal(connections_deadline(&table, ALL_TIMERS), CONNECTION_CREDIT_MS);
	assert_int_equal(connections_deadline(&table, 0), UINT64_MAX);
	assert_null(connections_expired(&table, 0, UINT64_MAX, &timer));
	assert_ptr_equal(
		connections_expired(&table, CONNECTION_TIMERS_DRAINING, UINT64_MAX, &timer),
		connections[CONNECTION_TIMER_DRAINING]);
	assert_null(connections_expired(&table, CONNECTION_TIMERS_DRAINING, UINT64_MAX, &timer));
	for (uint32_t i = 0; i < CONNECTION_TIMERS - 1; i++)
		assert_non_null(connections_expired(&table, ALL_TIMERS, UINT64_MAX, &timer));
	assert_null(connections_expired(&table, ALL_TIMERS, UINT64_MAX, &timer));
}

/* ---- lists ---- */

static void test_a_link_is_in_a_list_once_and_keeps_its_place(void **state)
{
	struct link list, links[3];

	(void)state;
	link_init(&list);
	assert_true(link_is_empty(&list));
	for (size_t i = 0; i < 3; i++) {
		link_init(&links[i]);
		link_append(&list, &links[i]);
	}
	link_append(&list, &links[0]);
	assert_ptr_equal(list.next, &links[0]);
	link_remove(&links[1]);
	link_remove(&links[1]);
	assert_true(link_is_empty(&links[1]));
	assert_ptr_equal(links[0].next, &links[2]);
	assert_ptr_equal(list.previous, &links[2]);
	link_remove(&links[0]);
	link_remove(&links[2]);
	assert_true(link_is_empty(&list));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_taken_connection_is_fresh),
		TEST(test_each_life_of_an_entry_has_another_generation),
		TEST(test_a_limit_is_kept_and_what_is_freed_can_be_taken),
		TEST(test_what_was_never_used_stays_untouched),
		TEST(test_both_ports_make_the_pair),
		TEST(test_connections_of_one_bucket_are_found_and_removed_in_any_order),
		TEST(test_an_unhashed_connection_makes_way_for_its_successor),
		TEST(test_ports_for_host_programs_are_in_their_range_and_wrap_inside),
		TEST(test_ports_in_use_with_this_guest_port_are_skipped),
		TEST(test_a_pair_of_ports_has_a_connection_of_each_type),
		TEST(test_a_port_that_either_type_uses_is_skipped),
		TEST(test_a_timer_ends_after_its_time_and_not_before),
		TEST(test_timers_of_a_kind_end_in_the_order_in_which_they_were_armed),
		TEST(test_a_connection_has_one_timer),
		TEST(test_only_the_timers_asked_for_are_looked_at),
		TEST(test_a_link_is_in_a_list_once_and_keeps_its_place),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
