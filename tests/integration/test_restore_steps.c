/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A restore as crosvm does it (tests/frontend/sequences/crosvm-restore.txt), and what may
 * happen between any two of its steps: programs of the host, of another guest and of the
 * guest itself ask for connections, the worker is replaced, or it dies.
 */

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/frontend/sequence.h"
#include "tests/integration/migration.h"
#include "tests/integration/replacer.h"
#include "tests/integration/tool.h"

#define STEPS_MAX    48
#define SIBLING_PORT 300
#define OWN_PORT     3000

/* One that asked at each step. */
struct caller {
	struct program program;
	struct guest_connection *sibling, *own;
};

static struct course {
	struct setup *setup;
	struct guest *guest, *other; /* other: NULL without a second VM */
	struct sequence sequence;
	unsigned int n_steps; /* of the restore */
	bool is_restoring, is_loaded, is_reset;
	void (*act)(void); /* before each step of it */
	unsigned int at;   /* for act() */
	unsigned int n_acts;
	struct caller callers[STEPS_MAX];
	int listener;
} course;

/* ---- who comes ---- */

/* A driver that is told to reset is not there for a while: what it asks for is held as well. */
static void call(void)
{
	struct caller *caller = &course.callers[course.n_acts];

	if (!course.is_loaded)
		return; /* there is no driver that it could wait for: it is sent away */
	assert_true(course.n_acts < STEPS_MAX);
	program_call(course.setup, course.guest, &caller->program, 100 + course.n_acts);
	course.n_acts++;
	caller->sibling = guest_connect(course.other, setup_cid(0), SIBLING_PORT);
	caller->own = guest_connect(course.guest, PACKET_HOST_CID, OWN_PORT);
	assert_true(caller->sibling && caller->own);
	assert_true(guest_poll(course.other, 0) >= 0);
}

static void assert_all_held(void)
{
	assert_int_equal(guest_poll_for(course.guest, QUIET), 0);
	assert_int_equal(guest_poll_for(course.other, QUIET), 0);
	for (unsigned int i = 0; i < course.n_acts; i++) {
		const struct caller *caller = &course.callers[i];

		program_assert_held(course.guest, &caller->program);
		assert_int_equal(caller->sibling->state, GUEST_CONNECTING);
		assert_int_equal(caller->own->state, GUEST_CONNECTING);
	}
	assert_null(guest_accept(course.guest, SIBLING_PORT));
	assert_int_equal(host_accept(course.listener, 1), -ETIMEDOUT);
}

static void wait_both(struct guest_connection *sibling, struct guest_connection *own)
{
	int64_t deadline = deadline_in(LIMIT);

	while (sibling->state != GUEST_ESTABLISHED || own->state != GUEST_ESTABLISHED) {
		if (deadline_left(deadline) == 0)
			fail_msg("sibling in state %d, own in %d", sibling->state, own->state);
		assert_true(guest_poll(course.guest, 1) >= 0);
		assert_true(guest_poll(course.other, 1) >= 0);
	}
}

static void assert_all_served(void)
{
	for (unsigned int i = 0; i < course.n_acts; i++) {
		struct caller *caller = &course.callers[i];

		program_assert_served(course.guest, &caller->program);
		wait_both(caller->sibling, caller->own);
		assert_true(host_accept(course.listener, LIMIT) >= 0);
		assert_non_null(guest_accept(course.guest, SIBLING_PORT));
	}
}

/* ---- what happens to the worker ---- */

static void replace(void)
{
	course.n_acts++;
	if (replace_worker(course.setup, course.guest, setup_cid(0)) != 0)
		fail_msg("%s: %s", course.sequence.where, replacer_failure);
}

/* The spare as well: before there is memory nobody can tell which is which. */
static void kill_workers(void)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n;

	if (course.n_steps - 1 != course.at)
		return;
	course.n_acts++;
	n = daemon_find(&course.setup->daemon, "vsockd-worker", pids);
	for (size_t i = 0; i < n; i++)
		kill(pids[i], SIGKILL);
}

/* Whoever comes before the front knows of the death goes down with the worker. */
static void wait_successor(void)
{
	int64_t deadline = deadline_in(LIMIT);

	while (replace_worker(course.setup, course.guest, setup_cid(0)) != 0) {
		if (deadline_left(deadline) == 0)
			fail_msg("no worker: %s", replacer_failure);
		assert_int_equal(guest_poll_for(course.guest, 10), 0);
	}
}

/* ---- the course ---- */

static void before(void *context)
{
	(void)context;
	if (!course.is_restoring || course.guest->vhost.fd < 0)
		return;
	course.n_steps++;
	course.act();
}

static bool has_reset(void *context)
{
	return ((struct guest *)context)->n_transport_resets > 0;
}

static void on_transport_reset(void)
{
	assert_int_equal(guest_wait_until(course.guest, has_reset, course.guest, LIMIT), 0);
	if (course.act == call)
		assert_all_held();
	else
		assert_int_equal(guest_answer_events(course.guest), 0);
}

/* One reset, and everything works. */
static void on_rest(void)
{
	course.is_restoring = false;
	if (course.act == call)
		assert_all_served();
	if (course.act == kill_workers)
		wait_successor();
	program_assert_serves(course.setup, course.guest);
	migration_assert_connects(course.setup, 0);
	migration_assert_no_more_resets(course.guest, 1);
}

static int take_turn(void *context, const char *name)
{
	(void)context;
	if (strcmp(name, "life") == 0)
		migration_assert_connects(course.setup, 0);
	else if (strcmp(name, "restore") == 0)
		course.is_restoring = true;
	else if (strcmp(name, "loaded") == 0)
		course.is_loaded = true;
	else if (strcmp(name, "transport-reset") == 0)
		on_transport_reset();
	else if (strcmp(name, "rest") == 0)
		on_rest();
	else
		return -EINVAL;
	return 0;
}

static void play(struct setup *setup, void (*act)(void), unsigned int at)
{
	struct guest_options options = {.cid = setup_cid(0), .holds_events = true};
	struct guest *guest = &setup->guests[0];
	char path[512];
	int error;

	assert_non_null(getenv("SEQUENCES"));
	snprintf(path, sizeof(path), "%s/crosvm-restore.txt", getenv("SEQUENCES"));
	course = (struct course){.setup = setup, .guest = guest, .act = act, .at = at};
	course.listener = host_listen(setup->uds_paths[0], OWN_PORT);
	if (setup->n_vms > 1)
		course.other = &setup->guests[1];
	assert_int_equal(sequence_open(path, &course.sequence), 0);
	course.sequence.before = before;
	options.style = course.sequence.style;
	assert_int_equal(guest_create(guest, &options), 0);
	setup->has_guest[0] = true;
	assert_int_equal(guest_listen(guest, SIBLING_PORT), 0);
	error = sequence_play(&course.sequence, guest, setup->sockets[0], take_turn, NULL);
	if (error)
		fail_msg("%s: %d %s%s", course.sequence.where, error, vhost_error(&guest->vhost),
			 guest_violations(guest));
	sequence_close(&course.sequence);
	setup_end_guest(setup, 0);
	close(course.listener);
}

static void test_who_asks_between_any_two_steps_is_held_and_then_served(void **state)
{
	struct setup *setup = *state;

	setup_guest(setup, 1, (struct guest_options){0});
	play(setup, call, 0);
	assert_true(course.n_acts > 20);
}

static void test_a_successor_between_any_two_steps_goes_on_with_the_restore(void **state)
{
	play(*state, replace, 0);
	assert_true(course.n_acts > 30);
}

static void test_a_worker_that_dies_between_two_steps_costs_no_reset_and_no_restore(void **state)
{
	unsigned int at = 0;

	do {
		play(*state, kill_workers, at++);
	} while (course.n_acts > 0);
	assert_true(at > 30);
}

static int start(void **state, size_t n_vms)
{
	*state = calloc(1, sizeof(struct setup));
	assert_non_null(*state);
	setup_start(*state, n_vms, n_vms > 1 ? "groups=a" : NULL, TOOL_ARGUMENTS);
	return 0;
}

static int start_one(void **state)
{
	return start(state, 1);
}

static int start_two(void **state)
{
	return start(state, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			test_who_asks_between_any_two_steps_is_held_and_then_served, start_two,
			migration_end),
		cmocka_unit_test_setup_teardown(
			test_a_successor_between_any_two_steps_goes_on_with_the_restore, start_one,
			migration_end),
		cmocka_unit_test_setup_teardown(
			test_a_worker_that_dies_between_two_steps_costs_no_reset_and_no_restore,
			start_one, setup_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
