/* SPDX-License-Identifier: Apache-2.0 */

/* A state that comes through a pipe of the VMM, and what waits until the driver knows of it. */

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/device_rig.h"

static int set_up(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){0});
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_end();
	return 0;
}

static int load(int fd)
{
	Vsockd__StateLoad body = VSOCKD__STATE_LOAD__INIT;

	return rig_command_of(&body.base, fd);
}

static int save(int fd)
{
	Vsockd__StateSave body = VSOCKD__STATE_SAVE__INIT;

	return rig_command_of(&body.base, fd);
}

static void quarantine(bool is_on)
{
	Vsockd__Quarantine body = VSOCKD__QUARANTINE__INIT;

	body.is_on = is_on;
	assert_int_equal(rig_command_of(&body.base, -1), 0);
}

static void make_pipe(int *pipes)
{
	assert_int_equal(pipe2(pipes, O_NONBLOCK | O_CLOEXEC), 0);
}

static void close_pipe(int *pipes)
{
	for (size_t i = 0; i < 2; i++)
		if (pipes[i] >= 0)
			close(pipes[i]);
}

static void expect_done(bool is_good, enum state_reason reason)
{
	struct rig_told told;

	rig_expect_told(VSOCKD__ENVELOPE__BODY_STATE_DONE, &told);
	assert_int_equal(told.values[0], is_good);
	assert_int_equal(told.values[1], reason);
}

/* Whatever the VMM does next, the worker is ready for another transfer. */
static void expect_idle(void)
{
	int pipes[2];

	make_pipe(pipes);
	assert_int_equal(save(pipes[1]), 0);
	rig_run();
	expect_done(true, STATE_GOOD);
	close_pipe(pipes);
}

static void test_a_state_without_an_end_is_refused(void **state)
{
	static const uint8_t bytes[4096];
	struct rig_told told;
	int pipes[2];
	size_t n = 0;

	(void)state;
	make_pipe(pipes);
	assert_int_equal(load(pipes[0]), 0);
	do {
		n += sizeof(bytes);
		assert_true(n < 64 << 20);
		assert_int_equal(write(pipes[1], bytes, sizeof(bytes)), sizeof(bytes));
		rig_run();
	} while (!rig_take_told(VSOCKD__ENVELOPE__BODY_STATE_DONE, &told));
	assert_int_equal(told.values[0], 0);
	assert_int_equal(told.values[1], STATE_WRONG_LENGTH);
	expect_idle();
	close_pipe(pipes);
}

static void test_a_state_that_cannot_be_read_is_refused(void **state)
{
	int pipes[2];

	(void)state;
	make_pipe(pipes);
	/* The end to write to; with the other one gone there is something to be seen of it. */
	assert_int_equal(load(pipes[1]), 0);
	close(pipes[0]);
	pipes[0] = -1;
	rig_run();
	expect_done(false, STATE_BROKEN_PIPE);
	expect_idle();
	close_pipe(pipes);
}

static void test_a_state_that_nobody_reads_is_not_saved(void **state)
{
	int pipes[2];

	(void)state;
	make_pipe(pipes);
	close(pipes[0]);
	pipes[0] = -1;
	assert_int_equal(save(pipes[1]), 0);
	rig_run();
	expect_done(false, STATE_BROKEN_PIPE);
	expect_idle();
	close_pipe(pipes);
}

static void test_one_state_at_a_time_is_on_its_way(void **state)
{
	struct rig_told told;
	int first[2], second[2];

	(void)state;
	make_pipe(first);
	make_pipe(second);
	assert_int_equal(load(first[0]), 0);
	assert_int_equal(load(second[0]), -EBUSY);
	assert_int_equal(save(second[1]), -EBUSY);
	/* The one that is on its way goes on: to an end without a byte, which says nothing. */
	close(first[1]);
	first[1] = -1;
	rig_run();
	rig_expect_told(VSOCKD__ENVELOPE__BODY_STATE_INFO, &told);
	expect_done(true, STATE_GOOD);
	expect_idle();
	close_pipe(first);
	close_pipe(second);
}

static void test_a_load_that_is_refused_makes_no_load_of_a_state_that_is_saved(void **state)
{
	static const uint8_t bytes[4096];
	uint8_t taken[4096];
	struct rig_told told;
	int first[2], second[2];

	(void)state;
	make_pipe(first);
	make_pipe(second);
	/* The state waits for room. */
	while (write(first[1], bytes, sizeof(bytes)) > 0)
		;
	assert_int_equal(save(first[1]), 0);
	assert_int_equal(load(second[0]), -EBUSY);
	while (read(first[0], taken, sizeof(taken)) > 0)
		;
	rig_run();
	expect_done(true, STATE_GOOD);
	/* That would be a claim about a load that the front has not ordered. */
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_STATE_INFO, &told));
	close_pipe(first);
	close_pipe(second);
}

static void test_a_file_is_no_channel_for_a_state(void **state)
{
	int file = memfd_create("state", MFD_CLOEXEC);

	(void)state;
	assert_true(file >= 0);
	assert_int_equal(load(file), -EPERM);
	expect_idle();
	close(file);
}

static void test_what_a_guest_asks_for_in_a_quarantine_is_told_at_its_end(void **state)
{
	const struct rig_peer waiting = {.guest_port = 1000, .host_port = 80};
	const struct rig_peer gone = {.guest_port = 1001, .host_port = 81};
	struct rig_told told;

	(void)state;
	rig_offer(2, 4096);
	quarantine(true);
	rig_say(&waiting, PACKET_OP_REQUEST, 0);
	rig_say(&gone, PACKET_OP_REQUEST, 0);
	rig_run();
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECT, &told));
	rig_expect_no_packet();
	rig_say(&gone, PACKET_OP_RST, 0);
	rig_run();
	quarantine(false);
	rig_run();
	rig_expect_told(VSOCKD__ENVELOPE__BODY_CONNECT, &told);
	assert_int_equal(told.values[1], 80);
	assert_int_equal(told.values[3], 1000);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECT, &told));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_state_without_an_end_is_refused),
		TEST(test_a_state_that_cannot_be_read_is_refused),
		TEST(test_a_state_that_nobody_reads_is_not_saved),
		TEST(test_one_state_at_a_time_is_on_its_way),
		TEST(test_a_load_that_is_refused_makes_no_load_of_a_state_that_is_saved),
		TEST(test_a_file_is_no_channel_for_a_state),
		TEST(test_what_a_guest_asks_for_in_a_quarantine_is_told_at_its_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
