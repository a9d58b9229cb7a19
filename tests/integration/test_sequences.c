/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Whole lives of a VM, as the messages of each VMM tell them (tests/frontend/sequences):
 * start, pause, snapshot, restore, hotplug, reboot. What has to be true in between is
 * looked at in the turns here, which the files call by name.
 */

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/sequence.h"
#include "tests/integration/migration.h"
#include "tests/integration/replacer.h"
#include "tests/integration/tool.h"

#define STANDING_PORT 2000
#define PUSHED_LEN    3000

/* Three deaths in a row are followed by pauses, eight by the end of the device. */
#define DEATH_STEPS 41

static struct life {
	struct setup *setup;
	struct guest *guest;
	struct sequence sequence;
	struct guest_connection *standing; /* goes on from turn to turn; NULL: none */
	struct host_stream stream;	   /* its other end */
	size_t n_pushed;		   /* sent by the host program while nothing ran */
	struct program caller;
	bool has_caller; /* it waits for the guest to run */
	uint64_t n_resets;
	unsigned int n_steps, dies_at; /* of each DEATH_STEPS, the step before which workers die */
	bool has_died;		       /* and the turns have not seen to it yet */
} life;

/* ---- turns ---- */

static void take_pushed(void)
{
	uint8_t expected[PUSHED_LEN], bytes[PUSHED_LEN];

	if (life.n_pushed == 0)
		return;
	pattern_fill(expected, PUSHED_LEN, 9, 0);
	assert_int_equal(guest_receive_all(life.standing, bytes, PUSHED_LEN, LIMIT), PUSHED_LEN);
	assert_memory_equal(bytes, expected, PUSHED_LEN);
	life.n_pushed = 0;
}

static void end_standing(void)
{
	assert_int_equal(guest_wait_state(life.standing, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(life.standing->error, ECONNRESET);
	assert_int_equal(guest_wait_until(life.guest, program_has_ended, &life.stream, LIMIT), 0);
	guest_forget(life.standing);
	setup_end_stream(life.setup, 0, &life.stream);
	life.standing = NULL;
	life.n_pushed = 0;
}

/* It may have been connected before its worker died, or not. */
static void drop_caller(void)
{
	struct guest_connection *connection;

	if (!life.has_caller)
		return;
	life.has_caller = false;
	program_end(life.guest, &life.caller);
	assert_int_equal(guest_poll_for(life.guest, QUIET), 0);
	while ((connection = guest_accept(life.guest, life.caller.port)))
		guest_abort(connection);
}

/* Whoever comes before the front knows of a death goes down with the worker. */
static void see_to_death(void)
{
	int64_t deadline = deadline_in(LIMIT);

	if (!life.has_died)
		return;
	life.has_died = false;
	while (replace_worker(life.setup, life.guest, setup_cid(0)) != 0) {
		if (deadline_left(deadline) == 0)
			fail_msg("%s: no worker: %s", life.sequence.where, replacer_failure);
		assert_int_equal(guest_poll_for(life.guest, 10), 0);
	}
	if (life.standing)
		end_standing();
	drop_caller();
}

/* What stood goes on, what waited is served, and what is new works. */
static void on_traffic(void)
{
	see_to_death();
	if (!life.standing)
		life.standing = setup_connect(life.setup, 0, STANDING_PORT, &life.stream);
	take_pushed();
	migration_exchange(life.standing, &life.stream, 20000);
	if (life.has_caller)
		program_assert_served(life.guest, &life.caller);
	life.has_caller = false;
	migration_assert_connects(life.setup, 0);
	program_assert_serves(life.setup, life.guest);
}

static void call_guest(void)
{
	if (!life.has_caller)
		program_call(life.setup, life.guest, &life.caller, 6666);
	life.has_caller = true;
}

/* Nothing is written to the rings, and nobody is called, whoever pushes. */
static void on_silence(void)
{
	static uint8_t pushed[PUSHED_LEN];
	struct guest *guest = life.guest;
	uint16_t used[GUEST_RINGS];

	for (size_t i = 0; i < guest->n_rings; i++) {
		ring_clear_call(&guest->rings[i]);
		used[i] = ring_used_idx(&guest->rings[i]);
	}
	if (life.standing && life.n_pushed == 0) {
		pattern_fill(pushed, PUSHED_LEN, 9, 0);
		host_stream_send(&life.stream, pushed, PUSHED_LEN, false);
		life.n_pushed = PUSHED_LEN;
	}
	call_guest();
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	for (size_t i = 0; i < guest->n_rings; i++) {
		assert_false(ring_clear_call(&guest->rings[i]));
		assert_int_equal(ring_used_idx(&guest->rings[i]), used[i]);
	}
	program_assert_held(guest, &life.caller);
}

/* A program that calls while a state is there and the guest does not run yet. */
static void on_hold(void)
{
	if (life.has_caller)
		program_end(life.guest, &life.caller); /* it called the VM before */
	life.has_caller = false;
	call_guest();
	assert_int_equal(guest_poll_for(life.guest, QUIET), 0);
	program_assert_held(life.guest, &life.caller);
}

static bool has_next_reset(void *context)
{
	const struct life *one = context;

	return one->guest->n_transport_resets > one->n_resets;
}

static void on_transport_reset(void)
{
	assert_int_equal(guest_wait_until(life.guest, has_next_reset, &life, LIMIT), 0);
	assert_int_equal(life.guest->n_transport_resets, ++life.n_resets);
	end_standing();
}

/* The driver forgot its connections: their other ends are told. */
static void on_loss(void)
{
	end_standing();
}

/* The driver still believes in a connection of another time, until it says something. */
static void on_stale(void)
{
	if (life.standing->state != GUEST_CLOSED)
		assert_int_equal(guest_send_all(life.standing, "x", 1, LIMIT), 0);
	end_standing();
}

static void on_marked(void)
{
	size_t n = 0;

	assert_non_null(life.sequence.log);
	for (size_t i = 0; i < life.sequence.log_len; i++)
		n += life.sequence.log[i] != 0;
	assert_true(n > 0);
}

static int take_turn(void *context, const char *name)
{
	static const struct {
		const char *name;
		void (*take)(void);
	} turns[] = {
		{"traffic", on_traffic},
		{"silence", on_silence},
		{"hold", on_hold},
		{"loss", on_loss},
		{"stale", on_stale},
		{"marked", on_marked},
		{"transport-reset", on_transport_reset},
	};

	(void)context;
	for (size_t i = 0; i < sizeof(turns) / sizeof(turns[0]); i++) {
		if (strcmp(turns[i].name, name) != 0)
			continue;
		turns[i].take();
		return 0;
	}
	return -EINVAL;
}

/* ---- lives ---- */

static int start(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	assert_non_null(*state);
	setup_start(*state, 1, NULL, TOOL_ARGUMENTS);
	return 0;
}

/* Between two sessions there is no worker, and within one always one that can go. */
static void replace_often(void *context)
{
	static unsigned int n_steps;

	(void)context;
	/* Each takes a while; no file is so regular that a kind of step would be left out. */
	if (life.guest->vhost.fd < 0 || n_steps++ % 5 != 0)
		return;
	if (replace_worker(life.setup, life.guest, setup_cid(0)) != 0)
		fail_msg("%s: %s", life.sequence.where, replacer_failure);
}

/* All of them: so the spare as well. */
static void die_before(void *context)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n;

	(void)context;
	if (life.guest->vhost.fd < 0 || life.n_steps++ % DEATH_STEPS != life.dies_at)
		return;
	n = daemon_find(&life.setup->daemon, "vsockd-worker", pids);
	for (size_t i = 0; i < n; i++)
		kill(pids[i], SIGKILL);
	life.has_died = true;
}

static void open_life(struct setup *setup, const char *name, unsigned int dies_at,
		      void (*before)(void *context))
{
	const char *directory = getenv("SEQUENCES");
	struct guest *guest = &setup->guests[0];
	struct guest_options options = {.cid = setup_cid(0)};
	char path[512];

	if (!directory)
		fail_msg("SEQUENCES is to name the directory");
	snprintf(path, sizeof(path), "%s/%s.txt", directory, name);
	life = (struct life){.setup = setup, .guest = guest, .dies_at = dies_at};
	assert_int_equal(sequence_open(path, &life.sequence), 0);
	options.style = life.sequence.style;
	life.sequence.before = before;
	assert_int_equal(guest_create(guest, &options), 0);
	setup->has_guest[0] = true;
}

static void play(struct setup *setup, const char *name, unsigned int dies_at,
		 void (*before)(void *context))
{
	struct guest *guest = &setup->guests[0];
	int error;

	open_life(setup, name, dies_at, before);
	error = sequence_play(&life.sequence, guest, setup->sockets[0], take_turn, NULL);
	if (error)
		fail_msg("%s, %s: %d %s%s", name, life.sequence.where, error,
			 vhost_error(&guest->vhost), guest_violations(guest));
	assert_null(life.has_caller ? &life.caller : NULL);
	if (life.standing)
		setup_end_stream(setup, 0, &life.stream);
	sequence_close(&life.sequence);
}

static void test_qemu_starts_stops_plugs_reboots_and_quits(void **state)
{
	play(*state, "qemu", 0, NULL);
}

static void test_qemu_logs_moves_fails_to_move_and_arrives(void **state)
{
	play(*state, "qemu-migration", 0, NULL);
}

static void test_crosvm_sleeps_wakes_is_saved_and_restored(void **state)
{
	play(*state, "crosvm", 0, NULL);
}

static void test_cloud_hypervisor_pauses_is_saved_resumed_and_restored(void **state)
{
	play(*state, "cloud-hypervisor", 0, NULL);
}

static void test_nobody_notices_a_successor_between_two_messages(void **state)
{
	static const char *const names[] = {"qemu", "qemu-migration", "crosvm", "cloud-hypervisor"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		play(*state, names[i], 0, replace_often);
		setup_end_guest(*state, 0);
	}
}

/* Connections end, at both ends; nothing else does. */
static void test_a_life_goes_on_whichever_workers_die(void **state)
{
	static const char *const names[] = {"qemu", "qemu-migration", "crosvm", "cloud-hypervisor"};

	for (unsigned int at = 0; at < DEATH_STEPS; at += 7)
		for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
			play(*state, names[i], at, die_before);
			setup_end_guest(*state, 0);
		}
}

/* The step is not said any more: nobody is there. */
static void kill_vmm_before(void *context)
{
	(void)context;
	if (life.n_steps++ != life.dies_at || life.guest->vhost.fd < 0)
		return;
	close(life.guest->vhost.fd);
	life.guest->vhost.fd = -1;
	life.has_died = true;
}

static int take_no_turn(void *context, const char *name)
{
	(void)context;
	(void)name;
	return life.has_died ? -ECANCELED : 0;
}

/* Up to the step of that number; false when there are not so many. */
static bool play_until_killed(struct setup *setup, const char *name, unsigned int at)
{
	struct guest *guest = &setup->guests[0];
	int error;

	open_life(setup, name, at, kill_vmm_before);
	error = sequence_play(&life.sequence, guest, setup->sockets[0], take_no_turn, NULL);
	if (error != 0 && !life.has_died)
		fail_msg("%s, %s: %d %s%s", name, life.sequence.where, error,
			 vhost_error(&guest->vhost), guest_violations(guest));
	sequence_close(&life.sequence);
	setup_end_guest(setup, 0);
	return life.n_steps > at;
}

static void test_a_vmm_may_be_killed_before_any_message(void **state)
{
	static const char *const names[] = {"qemu", "qemu-migration", "crosvm", "cloud-hypervisor"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		for (unsigned int at = 0; play_until_killed(*state, names[i], at); at++) {
			/* The next one is served, with all that the last one may have left. */
			setup_guest(*state, 0, (struct guest_options){0});
			migration_assert_connects(*state, 0);
			setup_end_guest(*state, 0);
		}
}

#define LIFE(name) cmocka_unit_test_setup_teardown(name, start, migration_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		LIFE(test_qemu_starts_stops_plugs_reboots_and_quits),
		LIFE(test_qemu_logs_moves_fails_to_move_and_arrives),
		LIFE(test_crosvm_sleeps_wakes_is_saved_and_restored),
		LIFE(test_cloud_hypervisor_pauses_is_saved_resumed_and_restored),
		LIFE(test_nobody_notices_a_successor_between_two_messages),
		LIFE(test_a_vmm_may_be_killed_before_any_message),
		cmocka_unit_test_setup_teardown(test_a_life_goes_on_whichever_workers_die, start,
						setup_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
