/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Workers that are replaced by the hundred, and workers that die while they are, under
 * connections that are busy both ways: every byte arrives once, or both ends are told.
 */

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/integration/replacer.h"
#include "tests/integration/setup.h"
#include "tests/integration/tool.h"
#include "tests/integration/transfer.h"

#define KIB   1024u
#define LIMIT SETUP_LIMIT

static int start_one(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	assert_non_null(*state);
	setup_start(*state, 1, NULL, TOOL_ARGUMENTS);
	return 0;
}

static int end(void **state)
{
	struct setup *setup = *state;

	assert_false(daemon_log_has(&setup->daemon, "worker lost"));
	assert_false(daemon_log_has(&setup->daemon, "not believed"));
	return setup_end(state);
}

#define N_STREAMS 64

static void step_all(struct transfer *transfers, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		transfer_step(&transfers[i], 0);
}

static bool are_done(const struct transfer *transfers)
{
	for (uint32_t i = 0; i < N_STREAMS; i++)
		if (transfers[i].n_to_guest < transfers[i].len ||
		    transfers[i].stream.n_received < transfers[i].len)
			return false;
	return true;
}

/*
 * Some host programs read only in between two replacements, so that bytes wait in
 * the buffers, and a few not at all before the eighth: so it does not come to an end.
 */
static void pause_some(struct transfer *transfers, uint32_t n_replaced)
{
	for (uint32_t i = 0; i < N_STREAMS; i += 3)
		host_stream_pause(&transfers[i].stream,
				  n_replaced < 8 && (i % 12 == 0 || (n_replaced + i) % 4 != 0));
}

static void test_streams_under_load_lose_no_byte_over_many_replacements(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){.queue_size = 256});
	struct transfer *transfers = calloc(N_STREAMS, sizeof(struct transfer));
	int64_t deadline = deadline_in(4 * LIMIT);
	struct replacer replacer;

	assert_non_null(transfers);
	for (uint32_t i = 0; i < N_STREAMS; i++)
		transfer_start(&transfers[i], setup, 0, 1000 + i, 600 * KIB);
	replacer_start(&replacer, setup, guest, setup_cid(0), UINT32_MAX);
	while (!are_done(transfers)) {
		if (deadline_left(deadline) == 0)
			fail_msg("it does not come to an end, after %u replacements",
				 replacer.n_good);
		pause_some(transfers, replacer.n_good);
		step_all(transfers, N_STREAMS);
	}
	replacer.n_left = 0;
	for (uint32_t i = 0; i < N_STREAMS; i++) {
		host_stream_pause(&transfers[i].stream, false);
		transfer_finish(&transfers[i]);
	}
	while (!replacer_is_done(&replacer))
		assert_true(guest_poll(guest, LIMIT) > 0);
	replacer_end(&replacer, guest);
	if (replacer.n_failed > 0)
		fail_msg("%s", replacer.failure);
	assert_true(replacer.n_good >= 5);
	free(transfers);
}

/*
 * Round after round of connections that are opened, filled both ways and closed, while
 * one worker follows the other; the bytes are those of transfer.h, looked at one by one.
 */
static void test_some_hundred_replacements_lose_nothing_of_what_comes_and_goes(void **state)
{
	enum { N_REPLACEMENTS = 300 };
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){.queue_size = 256});
	struct transfer *transfers = calloc(N_STREAMS, sizeof(struct transfer));
	int64_t deadline = deadline_in(6 * LIMIT);
	struct replacer replacer;

	assert_non_null(transfers);
	replacer_start(&replacer, setup, guest, setup_cid(0), N_REPLACEMENTS);
	while (!replacer_is_done(&replacer)) {
		for (uint32_t i = 0; i < N_STREAMS; i++)
			transfer_start(&transfers[i], setup, 0, 1000 + i, 200 * KIB);
		while (!are_done(transfers)) {
			if (deadline_left(deadline) == 0)
				fail_msg("only %u replacements", replacer.n_good);
			step_all(transfers, N_STREAMS);
		}
		for (uint32_t i = 0; i < N_STREAMS; i++)
			transfer_finish(&transfers[i]);
	}
	replacer_end(&replacer, guest);
	if (replacer.n_failed > 0)
		fail_msg("%s", replacer.failure);
	assert_int_equal(replacer.n_good, N_REPLACEMENTS);
	free(transfers);
}

/* Whoever dies meanwhile: the youngest is the successor, or was to be a spare. */
enum victim { OLDEST, YOUNGEST, ALL, VICTIMS };

static void kill_some(struct setup *setup, enum victim victim)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n = daemon_find(&setup->daemon, "vsockd-worker", pids);

	for (size_t i = 0; i < n; i++)
		if (victim == ALL || i == (victim == OLDEST ? 0 : n - 1))
			kill(pids[i], SIGKILL);
}

/* Until nothing that was killed is in the way any more. */
static void replace_at_last(struct setup *setup)
{
	int64_t deadline = deadline_in(LIMIT);

	while (replace_worker(setup, &setup->guests[0], setup_cid(0)) != 0) {
		if (deadline_left(deadline) == 0)
			fail_msg("%s", replacer_failure);
		assert_int_equal(guest_poll_for(&setup->guests[0], 10), 0);
	}
}

/* All of it, or the end of both ends; and the guest is served by the next worker. */
static void finish_or_lose(struct transfer *transfer)
{
	int64_t deadline = deadline_in(LIMIT);

	while (transfer->connection->state == GUEST_ESTABLISHED &&
	       (transfer->n_to_guest < transfer->len ||
		transfer->stream.n_received < transfer->len)) {
		if (deadline_left(deadline) == 0)
			fail_msg("stuck: %zu of %zu to the guest, %zu to the host program, ended "
				 "%d, error %d",
				 transfer->n_to_guest, transfer->len, transfer->stream.n_received,
				 transfer->stream.is_ended, transfer->stream.error);
		transfer_step(transfer, 10);
	}
	if (transfer->connection->state == GUEST_ESTABLISHED)
		transfer_finish(transfer);
	else
		transfer_expect_loss(transfer, LIMIT);
}

static void test_a_death_at_any_moment_of_a_replacement_is_a_clean_end_or_none(void **state)
{
	struct setup *setup = *state;

	for (unsigned int round = 0; round < 60; round++) {
		/* A session each: many deaths in a row are taken for the guest's doing. */
		struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
		int64_t moment;
		struct replacer replacer;
		struct transfer transfer;

		transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
		transfer_run_to(&transfer, 100 * KIB);
		replacer_start(&replacer, setup, guest, setup_cid(0), 1);
		moment = deadline_in((int)(round / VICTIMS));
		do
			transfer_step(&transfer, 0);
		while (deadline_left(moment) > 0);
		kill_some(setup, (enum victim)(round % VICTIMS));
		while (!replacer_is_done(&replacer))
			assert_true(guest_poll(guest, LIMIT) > 0);
		replacer_end(&replacer, guest);
		replace_at_last(setup);
		finish_or_lose(&transfer);
		transfer_all(setup, 0, 1001, 100 * KIB);
		setup_end_guest(setup, 0);
	}
}

static int start_one_chatty(void **state)
{
	static const char *const arguments[] = {"--control", "@/" TOOL_CONTROL, "--log-level",
						"debug", NULL};

	*state = calloc(1, sizeof(struct setup));
	assert_non_null(*state);
	setup_start(*state, 1, NULL, arguments);
	return 0;
}

/*
 * With each death in a row the VM waits longer for its next worker, and whoever replaces all
 * with it: meanwhile the spare that is to be that worker stays.
 */
static void test_nobody_takes_the_worker_that_a_vm_waits_for(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	size_t n_before = 0;

	for (unsigned int round = 0; round < 6; round++) {
		struct replacer replacer;

		n_before = daemon_count_log(&setup->daemon, " is process ");
		kill_some(setup, ALL);
		assert_int_equal(
			daemon_wait_log_times(&setup->daemon, "worker lost", round + 1, LIMIT), 0);
		replacer_start(&replacer, setup, guest, 0, 1);
		while (!replacer_is_done(&replacer))
			assert_true(guest_poll(guest, LIMIT) > 0);
		replacer_end(&replacer, guest);
		transfer_all(setup, 0, 1000, 100 * KIB);
	}
	/* For the two that died, a successor, and the spares that these leave. */
	assert_in_range(daemon_count_log(&setup->daemon, " is process ") - n_before, 1, 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			test_streams_under_load_lose_no_byte_over_many_replacements, start_one,
			end),
		cmocka_unit_test_setup_teardown(
			test_some_hundred_replacements_lose_nothing_of_what_comes_and_goes,
			start_one, end),
		cmocka_unit_test_setup_teardown(
			test_a_death_at_any_moment_of_a_replacement_is_a_clean_end_or_none,
			start_one, setup_end),
		cmocka_unit_test_setup_teardown(test_nobody_takes_the_worker_that_a_vm_waits_for,
						start_one_chatty, setup_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
