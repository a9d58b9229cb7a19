/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/endpoints.h"

#define N 4

static struct endpoints table;

static int set_up(void **state)
{
	(void)state;
	assert_true(endpoints_init(&table, N));
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	endpoints_clear(&table);
	free(table.all);
	return 0;
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static uint32_t take(enum endpoint_state state)
{
	uint32_t index = endpoints_take(&table, state);

	assert_in_range(index, 0, N - 1);
	return index;
}

static int give_fd(uint32_t index)
{
	table.all[index].fd = eventfd(0, EFD_CLOEXEC);
	assert_true(table.all[index].fd >= 0);
	return table.all[index].fd;
}

/* As the front does for the guest's Connect. */
static uint32_t connecting(uint32_t request, uint32_t guest_port)
{
	uint32_t index = take(ENDPOINT_CONNECTING);

	table.all[index].request = request;
	table.all[index].has_ports = true;
	table.all[index].guest_port = guest_port;
	table.requests[request] = index;
	return index;
}

static uint32_t opened(uint32_t request, uint32_t guest_port)
{
	uint32_t index = connecting(request, guest_port);

	give_fd(index);
	table.all[index].state = ENDPOINT_WAITING;
	endpoints_tell(&table, index);
	endpoints_told(&table);
	return index;
}

static void test_a_full_table_gives_none(void **state)
{
	bool was_given[N] = {false};

	(void)state;
	for (uint32_t i = 0; i < N; i++) {
		uint32_t index = take(ENDPOINT_CONNECTING);

		assert_false(was_given[index]);
		was_given[index] = true;
		assert_int_equal(table.n_used, i + 1);
	}
	assert_int_equal(endpoints_take(&table, ENDPOINT_WAITING), ENDPOINT_NONE);
	assert_int_equal(table.n_used, N);
	endpoints_release(&table, 2);
	assert_int_equal(endpoints_take(&table, ENDPOINT_WAITING), 2);
	assert_int_equal(endpoints_take(&table, ENDPOINT_WAITING), ENDPOINT_NONE);
}

static void test_a_taken_entry_is_fresh_and_of_another_generation(void **state)
{
	uint32_t index = connecting(3, 1000);
	uint16_t generation = table.all[index].generation;

	(void)state;
	table.all[index].is_accepted = true;
	table.all[index].give_up_at = 7;
	table.all[index].status = -1;
	endpoints_release(&table, index);
	assert_int_equal(take(ENDPOINT_WAITING), index);
	assert_int_equal(table.all[index].state, ENDPOINT_WAITING);
	assert_int_not_equal(table.all[index].generation, generation);
	assert_int_equal(table.all[index].fd, -1);
	assert_false(table.all[index].is_accepted);
	assert_false(table.all[index].has_ports);
	assert_int_equal(table.all[index].give_up_at, 0);
	assert_int_equal(table.all[index].status, 0);
}

static void test_release_closes_the_fd(void **state)
{
	uint32_t index = take(ENDPOINT_OPEN);
	int fd = give_fd(index);

	(void)state;
	endpoints_release(&table, index);
	assert_false(is_open(fd));
	assert_int_equal(table.n_used, 0);
	assert_null(endpoints_find(&table, index, ENDPOINT_OPEN));
	/* One without is released as well. */
	endpoints_release(&table, take(ENDPOINT_CONNECTING));
	assert_int_equal(table.n_used, 0);
}

static void test_the_worker_is_told_in_order(void **state)
{
	uint32_t order[3];

	(void)state;
	assert_int_equal(endpoints_untold(&table), ENDPOINT_NONE);
	for (uint32_t round = 0; round < 3; round++) {
		for (uint32_t i = 0; i < 3; i++) {
			order[i] = connecting(i, 1000 + i);
			table.all[order[i]].state = ENDPOINT_WAITING;
			endpoints_tell(&table, order[i]);
		}
		for (uint32_t i = 0; i < 3; i++) {
			assert_int_equal(endpoints_untold(&table), order[i]);
			assert_int_not_equal(table.requests[i], ENDPOINT_NONE);
			endpoints_told(&table);
			/* From here on the worker may use the number again. */
			assert_int_equal(table.requests[i], ENDPOINT_NONE);
			assert_non_null(endpoints_find(&table, order[i], ENDPOINT_OPEN));
		}
		assert_int_equal(endpoints_untold(&table), ENDPOINT_NONE);
		for (uint32_t i = 0; i < 3; i++)
			endpoints_release(&table, order[i]);
	}
}

static void test_a_refused_entry_ends_with_being_told(void **state)
{
	uint32_t refused, waiting;

	(void)state;
	refused = connecting(5, 1000);
	table.all[refused].state = ENDPOINT_REFUSED;
	endpoints_tell(&table, refused);
	waiting = connecting(6, 1001);
	table.all[waiting].state = ENDPOINT_WAITING;
	endpoints_tell(&table, waiting);
	endpoints_told(&table);
	assert_int_equal(table.all[refused].state, ENDPOINT_FREE);
	assert_int_equal(table.requests[5], ENDPOINT_NONE);
	assert_int_not_equal(table.requests[6], ENDPOINT_NONE);
	/* The list goes on behind it, though its entry is in the list of the free. */
	assert_int_equal(endpoints_untold(&table), waiting);
	assert_int_equal(table.n_used, 1);
}

static void test_an_accepted_entry_clears_no_request(void **state)
{
	uint32_t accepted = take(ENDPOINT_WAITING);

	(void)state;
	table.all[accepted].is_accepted = true;
	table.requests[0] = 3; /* another's, whose number is 0 */
	endpoints_tell(&table, accepted);
	endpoints_told(&table);
	assert_int_not_equal(table.requests[0], ENDPOINT_NONE);
	assert_int_equal(table.all[accepted].state, ENDPOINT_OPEN);
}

static void test_only_an_entry_in_that_state_is_found(void **state)
{
	static const enum endpoint_state states[] = {
		ENDPOINT_CONNECTING, ENDPOINT_REFUSED, ENDPOINT_WAITING,
		ENDPOINT_OPEN,	     ENDPOINT_LOST,
	};

	(void)state;
	for (size_t i = 0; i < 5; i++) {
		uint32_t index = take(states[i]);

		for (size_t k = 0; k < 5; k++)
			assert_ptr_equal(endpoints_find(&table, index, states[k]),
					 i == k ? &table.all[index] : NULL);
		endpoints_release(&table, index);
	}
	assert_null(endpoints_find(&table, N, ENDPOINT_FREE));
	assert_null(endpoints_find(&table, N, ENDPOINT_OPEN));
	assert_null(endpoints_find(&table, UINT32_MAX, ENDPOINT_OPEN));
}

static void test_what_a_dead_worker_held_is_lost_if_the_guest_knows_of_it(void **state)
{
	uint32_t open, asked, accepted, unknown;
	int fds[3];

	(void)state;
	open = opened(0, 1000);
	fds[0] = table.all[open].fd;
	asked = connecting(1, 1001);
	accepted = take(ENDPOINT_OPEN); /* its handshake is not over */
	table.all[accepted].is_accepted = true;
	fds[1] = give_fd(accepted);
	unknown = take(ENDPOINT_WAITING);
	table.all[unknown].is_accepted = true;
	fds[2] = give_fd(unknown);
	endpoints_tell(&table, unknown);

	assert_int_equal(endpoints_lose(&table), 2);
	for (size_t i = 0; i < 3; i++)
		assert_false(is_open(fds[i]));
	for (uint32_t i = 0; i < 2 * N; i++)
		assert_int_equal(table.requests[i], ENDPOINT_NONE);
	assert_int_equal(table.n_used, 2);
	assert_non_null(endpoints_find(&table, open, ENDPOINT_LOST));
	assert_non_null(endpoints_find(&table, asked, ENDPOINT_LOST));

	/* The next worker hears of both, and nobody else does. */
	for (uint32_t i = 0; i < 2; i++) {
		uint32_t index = endpoints_untold(&table);

		assert_true(index == open || index == asked);
		endpoints_told(&table);
		assert_non_null(endpoints_find(&table, index, ENDPOINT_RESETTING));
	}
	assert_int_equal(endpoints_untold(&table), ENDPOINT_NONE);
	assert_int_equal(table.n_used, 2);
	endpoints_release(&table, open);
	endpoints_release(&table, asked);
	for (uint32_t i = 0; i < N; i++)
		take(ENDPOINT_OPEN);
}

static void test_a_request_may_be_refused_without_an_entry(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < N; i++)
		take(ENDPOINT_OPEN);
	assert_int_equal(endpoints_refusal(&table), ENDPOINT_NONE);
	endpoints_refuse(&table, 2 * N - 1);
	endpoints_refuse(&table, 0);
	assert_int_equal(endpoints_refusal(&table), 0);
	endpoints_refusal_told(&table, 0);
	assert_int_equal(endpoints_refusal(&table), 2 * N - 1);
	assert_int_equal(table.requests[0], ENDPOINT_NONE);
	/* Nobody waits for it any more. */
	endpoints_lose(&table);
	assert_int_equal(endpoints_refusal(&table), ENDPOINT_NONE);
	endpoints_clear(&table);
}

static void test_a_reset_is_owed_until_a_worker_lived_to_send_it(void **state)
{
	uint32_t index;

	(void)state;
	index = opened(0, 1000);
	assert_int_equal(endpoints_lose(&table), 1);
	/* Each of these successors dies, before or after it was told. */
	assert_int_equal(endpoints_lose(&table), 0);
	assert_int_equal(endpoints_untold(&table), index);
	endpoints_told(&table);
	assert_int_equal(endpoints_untold(&table), ENDPOINT_NONE);
	assert_int_equal(endpoints_lose(&table), 0);
	assert_int_equal(endpoints_untold(&table), index);
	assert_non_null(endpoints_find(&table, index, ENDPOINT_LOST));
	endpoints_told(&table);
	endpoints_release(&table, index);
	assert_int_equal(table.n_used, 0);
}

/* ---- pairs ---- */

static uint32_t accepted_sibling(void)
{
	uint32_t index = take(ENDPOINT_WAITING);

	table.all[index].is_accepted = true;
	table.all[index].has_ports = true;
	give_fd(index);
	endpoints_tell(&table, index);
	return index;
}

static void test_the_worker_is_told_that_the_other_end_was_reset(void **state)
{
	uint32_t index = accepted_sibling();
	int fd = table.all[index].fd, peer_fd = dup(fd);

	(void)state;
	endpoints_told(&table);
	endpoints_end(&table, index, peer_fd);
	assert_non_null(endpoints_find(&table, index, ENDPOINT_ENDING));
	assert_int_equal(endpoints_untold(&table), index);
	/* Not before: its end would be an orderly one. */
	assert_true(is_open(peer_fd));
	endpoints_told(&table);
	assert_false(is_open(peer_fd));
	/* Its own end is the worker's to close. */
	assert_non_null(endpoints_find(&table, index, ENDPOINT_OPEN));
	assert_true(is_open(fd));
	assert_true(endpoints_closed(&table, index));
	assert_false(is_open(fd));
	assert_int_equal(table.n_used, 0);
	assert_false(endpoints_closed(&table, index));
}

static void test_what_the_worker_closed_meanwhile_it_is_not_told_of(void **state)
{
	uint32_t index = accepted_sibling();
	int fd = table.all[index].fd, peer_fd = dup(fd);

	(void)state;
	endpoints_told(&table);
	endpoints_end(&table, index, peer_fd);
	assert_true(endpoints_closed(&table, index));
	assert_false(is_open(fd));
	assert_false(is_open(peer_fd));
	assert_false(endpoints_closed(&table, index));
	/* It stands in the list, and its place is not given to anybody before its turn. */
	assert_non_null(endpoints_find(&table, index, ENDPOINT_GONE));
	assert_int_equal(endpoints_untold(&table), index);
	endpoints_told(&table);
	assert_int_equal(table.n_used, 0);
	assert_int_equal(endpoints_untold(&table), ENDPOINT_NONE);
}

/* Or guests that work together could keep more files open than were counted. */
static void test_an_other_end_takes_the_place_of_an_entry(void **state)
{
	uint32_t indices[N - 1];
	int peers[N - 1];

	(void)state;
	for (size_t i = 0; i < N - 1; i++) {
		indices[i] = accepted_sibling();
		endpoints_told(&table);
	}
	for (size_t i = 0; i < N - 1; i++) {
		peers[i] = fcntl(table.all[indices[i]].fd, F_DUPFD_CLOEXEC, 100 + (int)i);
		endpoints_end(&table, indices[i], peers[i]);
	}
	assert_true(is_open(peers[0]));
	assert_false(is_open(peers[1]));
	assert_true(endpoints_are_full(&table));
	assert_int_equal(endpoints_take(&table, ENDPOINT_CONNECTING), ENDPOINT_NONE);
	endpoints_told(&table);
	assert_false(is_open(peers[0]));
	take(ENDPOINT_CONNECTING);
}

static void test_an_end_that_the_worker_has_not_got_is_closed(void **state)
{
	uint32_t asked = accepted_sibling(), asking, answered;
	int fds[6] = {table.all[asked].fd};

	(void)state;
	asking = connecting(1, 1001); /* the other guest refuses */
	fds[1] = give_fd(asking);
	answered = connecting(2, 1002); /* it accepted, and then reset it */
	fds[2] = give_fd(answered);
	table.all[answered].state = ENDPOINT_WAITING;
	endpoints_tell(&table, answered);

	for (size_t i = 3; i < 6; i++)
		fds[i] = dup(fds[i - 3]);
	endpoints_end(&table, asked, fds[3]);
	endpoints_end(&table, asking, fds[4]);
	endpoints_end(&table, answered, fds[5]);
	for (size_t i = 0; i < 6; i++)
		assert_false(is_open(fds[i]));
	assert_non_null(endpoints_find(&table, asked, ENDPOINT_GONE));
	assert_non_null(endpoints_find(&table, asking, ENDPOINT_REFUSED));
	assert_int_equal(table.all[asking].status, -ECONNREFUSED);
	assert_non_null(endpoints_find(&table, answered, ENDPOINT_REFUSED));
	assert_int_equal(table.all[answered].status, -ECONNRESET);
	for (size_t i = 0; i < 3; i++)
		endpoints_told(&table);
	assert_int_equal(endpoints_untold(&table), ENDPOINT_NONE);
	assert_int_equal(table.n_used, 0);
	assert_int_equal(table.requests[1], ENDPOINT_NONE);
	assert_int_equal(table.requests[2], ENDPOINT_NONE);
}

static void test_a_dead_worker_owes_no_reset_of_what_is_gone(void **state)
{
	uint32_t ending = accepted_sibling(), gone;
	int peer_fd;

	(void)state;
	endpoints_told(&table);
	peer_fd = dup(table.all[ending].fd);
	endpoints_end(&table, ending, peer_fd);
	gone = accepted_sibling();
	endpoints_end(&table, gone, -1);
	assert_int_equal(endpoints_lose(&table), 1);
	assert_false(is_open(peer_fd));
	assert_int_equal(table.n_used, 1);
	assert_non_null(endpoints_find(&table, ending, ENDPOINT_LOST));
	assert_int_equal(endpoints_untold(&table), ending);
}

static void test_clear_leaves_nothing(void **state)
{
	int fd;

	(void)state;
	fd = table.all[opened(0, 1000)].fd;
	connecting(1, 1001);
	endpoints_tell(&table, take(ENDPOINT_LOST));
	endpoints_clear(&table);
	assert_false(is_open(fd));
	assert_int_equal(table.n_used, 0);
	assert_int_equal(endpoints_untold(&table), ENDPOINT_NONE);
	for (uint32_t i = 0; i < 2 * N; i++)
		assert_int_equal(table.requests[i], ENDPOINT_NONE);
	for (uint32_t i = 0; i < N; i++)
		take(ENDPOINT_OPEN);
	assert_int_equal(endpoints_take(&table, ENDPOINT_OPEN), ENDPOINT_NONE);
}

/* As a reload does it: an answer to an entry of before must not meet one of after. */
static void test_another_size_keeps_the_generations(void **state)
{
	uint16_t generation;

	(void)state;
	for (uint32_t n = 1; n <= N; n++) {
		generation = table.all[0].generation;
		endpoints_resize(&table, n);
		for (uint32_t i = 0; i < n; i++)
			take(ENDPOINT_OPEN);
		assert_int_equal(endpoints_take(&table, ENDPOINT_OPEN), ENDPOINT_NONE);
		assert_int_equal(table.all[0].generation, generation + 1);
		endpoints_clear(&table);
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_full_table_gives_none),
		TEST(test_a_taken_entry_is_fresh_and_of_another_generation),
		TEST(test_release_closes_the_fd),
		TEST(test_the_worker_is_told_in_order),
		TEST(test_a_refused_entry_ends_with_being_told),
		TEST(test_an_accepted_entry_clears_no_request),
		TEST(test_only_an_entry_in_that_state_is_found),
		TEST(test_what_a_dead_worker_held_is_lost_if_the_guest_knows_of_it),
		TEST(test_a_request_may_be_refused_without_an_entry),
		TEST(test_a_reset_is_owed_until_a_worker_lived_to_send_it),
		TEST(test_the_worker_is_told_that_the_other_end_was_reset),
		TEST(test_what_the_worker_closed_meanwhile_it_is_not_told_of),
		TEST(test_an_other_end_takes_the_place_of_an_entry),
		TEST(test_an_end_that_the_worker_has_not_got_is_closed),
		TEST(test_a_dead_worker_owes_no_reset_of_what_is_gone),
		TEST(test_clear_leaves_nothing),
		TEST(test_another_size_keeps_the_generations),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
