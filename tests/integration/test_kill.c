/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A connection that an operator ends while its guest or its worker cannot be told: the
 * answer says what has happened, and what is still to come does.
 */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/operator.h"
#include "tests/integration/setup.h"
#include "tests/integration/tool.h"

#define LIMIT SETUP_LIMIT
#define PORT  2000

/* sysexits.h */
enum { TEMPFAIL = 75 };

static struct tool tool;

static int start_one(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	setup_start(*state, 1, NULL, TOOL_ARGUMENTS);
	return 0;
}

static int start_group(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	setup_start(*state, 2, "groups=all", TOOL_ARGUMENTS);
	return 0;
}

static int run(struct setup *setup, const char *first, const char *second)
{
	return tool_run(&tool, setup, (const char *const[]){first, second, NULL});
}

static void start(struct tool *which, struct setup *setup, const char *first, const char *second)
{
	tool_start(which, daemon_path(&setup->daemon, TOOL_CONTROL),
		   (const char *const[]){first, second, NULL});
}

static void expect_complaint(const char *text)
{
	if (!strstr(tool.complaint, text))
		fail_msg("\"%s\" is not in: %s", text, tool.complaint);
}

/* As "vsockctl connections" has it, of the only one of the first VM. */
static void find_id(struct setup *setup, char ret_id[static 32])
{
	const char *line;

	assert_int_equal(run(setup, "connections", "3"), 0);
	line = strstr(tool.text, "\n3:");
	assert_non_null(line);
	assert_int_equal(sscanf(line, "\n%31s", ret_id), 1);
}

static void wait_reset(struct guest_connection *connection)
{
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
	guest_forget(connection);
}

static void test_a_worker_that_cannot_be_told_ends_nothing_and_that_is_said(void **state)
{
	static struct tool suspend;
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	struct host_stream stream;
	char id[32], reason[256];
	pid_t worker = setup_worker(setup, 0);
	int fd;

	connection = setup_connect(setup, 0, PORT, &stream);
	find_id(setup, id);
	fd = operator_connect(daemon_path(&setup->daemon, TOOL_CONTROL), LIMIT);
	assert_true(fd >= 0);
	/* It is asked for its word, which the front awaits longer than an operator waits. */
	assert_int_equal(kill(worker, SIGSTOP), 0);
	start(&suspend, setup, "suspend", "3");
	assert_int_equal(daemon_wait_log(&setup->daemon, "suspended by the operator", LIMIT), 0);
	assert_int_equal(operator_ask_kill(fd, 3, (uint32_t)strtoul(id + 2, NULL, 10)), 0);
	assert_int_equal(socket_wait(fd, POLLIN, deadline_in(LIMIT)), 0);
	assert_int_equal(kill(worker, SIGCONT), 0);
	assert_int_equal(operator_take_answer(fd, reason, sizeof(reason)), 1);
	if (!strstr(reason, "the connection goes on"))
		fail_msg("%s", reason);
	close(fd);

	assert_int_equal(tool_end(&suspend), 0);
	assert_int_equal(run(setup, "resume", "3"), 0);
	assert_int_equal(guest_send_all(connection, "on", 2, LIMIT), 0);
	while (stream.n_received < 2)
		assert_true(guest_poll(guest, LIMIT) > 0);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_a_guest_that_takes_no_packets_is_told_when_it_does(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	struct host_stream stream;
	char id[32];

	connection = setup_connect(setup, 0, PORT, &stream);
	find_id(setup, id);
	assert_int_equal(run(setup, "suspend", "3"), 0);
	start(&tool, setup, "kill", id);
	/* The program is not kept waiting. */
	while (!stream.is_ended)
		assert_true(guest_poll(guest, LIMIT) > 0);
	assert_int_equal(tool_end(&tool), TEMPFAIL);
	expect_complaint("the guest takes no packets; the connection ends as soon as it does");
	assert_int_equal(connection->state, GUEST_ESTABLISHED);

	assert_int_equal(run(setup, "resume", "3"), 0);
	wait_reset(connection);
	setup_end_stream(setup, 0, &stream);
}

/* ---- between guests ---- */

struct pair {
	struct guest_connection *ends[2]; /* of the first VM, which asks, and of the second */
};

static struct pair join(struct setup *setup)
{
	struct guest *guests[2];
	struct pair pair = {0};

	for (size_t i = 0; i < 2; i++)
		guests[i] = setup_guest(setup, i, (struct guest_options){0});
	assert_int_equal(guest_listen(guests[1], PORT), 0);
	pair.ends[0] = guest_connect(guests[0], setup_cid(1), PORT);
	assert_non_null(pair.ends[0]);
	pair.ends[1] = guest_accept_wait(guests[1], PORT, LIMIT);
	assert_non_null(pair.ends[1]);
	assert_int_equal(guest_wait_state(pair.ends[0], GUEST_ESTABLISHED, LIMIT), 0);
	return pair;
}

static void reset_second(struct setup *setup, struct pair *pair)
{
	assert_int_equal(guest_abort(pair->ends[1]), 0);
	guest_forget(pair->ends[1]);
	setup_settle(setup);
}

static void test_an_end_whose_guest_has_not_heard_of_a_reset_has_its_id(void **state)
{
	struct setup *setup = *state;
	struct pair pair = join(setup);
	char id[32], now[32];

	find_id(setup, id);
	assert_int_equal(run(setup, "suspend", "3"), 0);
	reset_second(setup, &pair);
	find_id(setup, now);
	assert_string_equal(now, id);
	assert_int_equal(run(setup, "kill", id), TEMPFAIL);
	expect_complaint("takes no packets");
	assert_int_equal(run(setup, "resume", "3"), 0);
	wait_reset(pair.ends[0]);
}

static void test_a_kill_is_not_done_because_the_other_guest_resets(void **state)
{
	struct setup *setup = *state;
	struct pair pair = join(setup);
	char id[32];

	find_id(setup, id);
	assert_int_equal(run(setup, "suspend", "3"), 0);
	start(&tool, setup, "kill", id);
	assert_int_equal(daemon_wait_log(&setup->daemon, ": kill", LIMIT), 0);
	reset_second(setup, &pair);
	assert_int_equal(tool_end(&tool), TEMPFAIL);
	assert_int_equal(run(setup, "resume", "3"), 0);
	wait_reset(pair.ends[0]);
}

#define WITH(start, test) cmocka_unit_test_setup_teardown(test, start, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH(start_one, test_a_worker_that_cannot_be_told_ends_nothing_and_that_is_said),
		WITH(start_one, test_a_guest_that_takes_no_packets_is_told_when_it_does),
		WITH(start_group, test_an_end_whose_guest_has_not_heard_of_a_reset_has_its_id),
		WITH(start_group, test_a_kill_is_not_done_because_the_other_guest_resets),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
