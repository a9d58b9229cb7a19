/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One of the two workers of a replacement ends, hangs or stays silent at each of its
 * steps. What comes of it is one of two things: nothing is lost, or the connections are
 * reset, once, at both ends. The VM works afterwards either way, and so does the other.
 */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"
#include "tests/frontend/operator.h"
#include "tests/hostile/rig.h"

#define PORT	      7000
#define N_CONNECTIONS 4
#define LEN	      3000 /* each way, on their way meanwhile */

static struct rig rig;
static int control, listener;

static int set_up(void **state)
{
	(void)state;
	rig_start_evil(&rig, "max-connections=16");
	listener = host_listen(rig.uds_path, PORT);
	assert_true(listener >= 0);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	close(listener);
	rig_stop(&rig);
	return 0;
}

static void order(enum orders_when when, uint32_t command, enum orders_then then)
{
	struct orders *orders = rig.orders;

	memset((char *)orders + offsetof(struct orders, when), 0,
	       sizeof(*orders) - offsetof(struct orders, when));
	orders->when = when;
	orders->command = command;
	orders->then = then;
	rig_mark(&rig);
	atomic_store(&orders->n_taken, 0);
	atomic_store(&orders->n_left, 1);
}

/* ---- a guest with connections ---- */

struct line {
	struct guest_connection *connection;
	int fd; /* of the program on the host */
};

static struct guest guest;
static struct line lines[N_CONNECTIONS];
static uint8_t up[LEN], down[LEN];

static void open_line(struct line *line)
{
	line->connection = guest_connect_wait(&guest, PACKET_HOST_CID, PORT, RIG_LIMIT);
	assert_non_null(line->connection);
	line->fd = host_accept(listener, RIG_LIMIT);
	assert_true(line->fd >= 0);
}

static void close_line(struct line *line)
{
	guest_abort(line->connection);
	guest_forget(line->connection);
	close(line->fd);
}

static void start_guest(void)
{
	const struct guest_options options = {.socket = rig.socket, .timeout = RIG_LIMIT};

	assert_int_equal(guest_start(&guest, &options), 0);
	for (size_t i = 0; i < N_CONNECTIONS; i++)
		open_line(&lines[i]);
}

static void end_guest(void)
{
	for (size_t i = 0; i < N_CONNECTIONS; i++)
		close_line(&lines[i]);
	guest_end(&guest);
}

static void start(void)
{
	control = operator_connect(daemon_path(&rig.daemon, "control"), RIG_LIMIT);
	assert_true(control >= 0);
	pattern_fill(up, LEN, 1, 0);
	pattern_fill(down, LEN, 2, 0);
	start_guest();
}

/* Into the guest's ring and the program's socket; whoever serves moves it. */
static void send_all(void)
{
	for (size_t i = 0; i < N_CONNECTIONS; i++) {
		assert_int_equal(guest_send(lines[i].connection, up, LEN), LEN);
		assert_int_equal(host_write(lines[i].fd, down, LEN, RIG_LIMIT), 0);
	}
}

/* The answer, while the guest goes on. 0: replaced; 1: not. */
static int replace(const char *what)
{
	int64_t deadline = deadline_in(RIG_LIMIT);
	char reason[256];
	int answer;

	assert_int_equal(operator_ask_replace(control, RIG_CID), 0);
	while ((answer = operator_take_answer(control, reason, sizeof(reason))) == -EAGAIN) {
		if (deadline_left(deadline) == 0)
			fail_msg("%s: no answer", what);
		assert_true(guest_poll(&guest, 1) >= 0);
	}
	assert_true(answer >= 0);
	return answer;
}

/* What was sent arrives whole, both ways. */
static bool is_whole(struct line *line)
{
	uint8_t bytes[LEN];

	if (guest_receive_all(line->connection, bytes, LEN, RIG_LIMIT) != LEN)
		return false;
	assert_memory_equal(bytes, down, LEN);
	/* The guest has to be there: it gives credit. */
	for (size_t n = 0; n < LEN;) {
		ssize_t more = recv(line->fd, bytes + n, LEN - n, 0);

		if (more == 0 || (more < 0 && errno != EAGAIN))
			return false;
		n += more > 0 ? (size_t)more : 0;
		assert_true(guest_poll(&guest, 1) >= 0);
		if (line->connection->state == GUEST_CLOSED)
			return false;
	}
	assert_memory_equal(bytes, up, LEN);
	return true;
}

/* The guest is told of a reset, and the program finds the end behind what had come. */
static void expect_reset(struct line *line, const char *what)
{
	int64_t deadline = deadline_in(RIG_LIMIT);
	uint8_t bytes[LEN];
	ssize_t n;

	if (guest_wait_state(line->connection, GUEST_CLOSED, RIG_LIMIT) != 0)
		fail_msg("%s: half of a connection is left", what);
	assert_int_equal(line->connection->error, ECONNRESET);
	while ((n = recv(line->fd, bytes, LEN, 0)) > 0 || (n < 0 && errno == EAGAIN)) {
		if (deadline_left(deadline) == 0)
			fail_msg("%s: the program is not told", what);
		assert_true(guest_poll(&guest, 1) >= 0);
	}
}

/* What was on its way when it happened, and then once more. */
static bool line_lived(struct line *line, const char *what)
{
	if (is_whole(line) && guest_send(line->connection, up, LEN) == LEN &&
	    host_write(line->fd, down, LEN, RIG_LIMIT) == 0 && is_whole(line))
		return true;
	expect_reset(line, what);
	return false;
}

/* All of them lived, or none. The VM works in any case. */
static bool all_lived(const char *what)
{
	size_t n_lived = 0;

	for (size_t i = 0; i < N_CONNECTIONS; i++) {
		if (line_lived(&lines[i], what)) {
			n_lived++;
			continue;
		}
		close_line(&lines[i]);
		open_line(&lines[i]);
	}
	if (n_lived != 0 && n_lived != N_CONNECTIONS)
		fail_msg("%s: %zu of %d connections lived", what, n_lived, N_CONNECTIONS);
	if (guest_violations(&guest)[0] != '\0')
		fail_msg("%s: %s", what, guest_violations(&guest));
	rig_check_neighbour(&rig, 1, what);
	return n_lived > 0;
}

static void end(const char *what)
{
	atomic_store(&rig.orders->n_left, 0);
	send_all();
	assert_int_equal(replace(what), 0);
	assert_true(all_lived(what));
	end_guest();
	close(control);
	rig_check(&rig, what);
}

/* Once at each step, until there is no such step; so many there were. */
static uint32_t try_steps(enum orders_when when, enum orders_then then, uint32_t *ret_n_lost)
{
	uint32_t n_lost = 0, step = 0;

	for (;; step++) {
		char what[48];
		int answer;

		snprintf(what, sizeof(what), "%d at %d %u", (int)then, (int)when, step);
		order(when, step, then);
		send_all();
		answer = replace(what);
		if (!all_lived(what))
			n_lost++;
		else if (answer == 0 && atomic_load(&rig.orders->n_taken) == 0)
			break;
		/* Eight deaths in a row in one session are those of a guest that kills. */
		end_guest();
		start_guest();
	}
	*ret_n_lost = n_lost;
	return step;
}

/* ---- the steps ---- */

static void test_a_successor_may_end_at_any_command(void **state)
{
	uint32_t n_lost, n;

	(void)state;
	start();
	n = try_steps(ORDERS_AT_COMMAND, ORDERS_EXIT, &n_lost);
	assert_in_range(n, 10, 40);
	/* It is the worker once it was told to serve; and so is the one that is to stop. */
	assert_in_range(n_lost, 1, 2);
	end("successor ends");
}

static void test_a_worker_may_end_at_anything_it_tells_of_its_device(void **state)
{
	uint32_t n_lost, n;

	(void)state;
	start();
	n = try_steps(ORDERS_AT_TOLD, ORDERS_EXIT, &n_lost);
	assert_in_range(n, 8, 60);
	/* Its death is that of any worker, until its successor has what it needs. */
	assert_in_range(n_lost, n - 1, n);
	end("worker ends");
}

static void test_a_worker_may_leave_out_anything_of_its_device(void **state)
{
	uint32_t n_lost;

	(void)state;
	start();
	assert_in_range(try_steps(ORDERS_AT_TOLD, ORDERS_SWALLOW, &n_lost), 8, 60);
	end("left out");
}

static void test_a_worker_that_ends_when_it_is_to_stop_has_another_successor(void **state)
{
	(void)state;
	start();
	order(ORDERS_AT_HANDOVER, 0, ORDERS_EXIT);
	send_all();
	assert_int_equal(replace("to stop"), 1);
	assert_false(all_lived("to stop"));
	end("to stop");
}

/* A hang is ended by the time limits: nobody waits longer. */
static void test_neither_of_the_two_may_hang(void **state)
{
	static const struct {
		enum orders_when when;
		uint32_t command;
	} places[] = {{ORDERS_AT_HANDOVER, 0}, {ORDERS_AT_TOLD, 3}, {ORDERS_AT_COMMAND, 3}};

	(void)state;
	start();
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		char what[32];

		snprintf(what, sizeof(what), "hang %zu", i);
		order(places[i].when, places[i].command, ORDERS_SLEEP);
		send_all();
		assert_int_equal(replace(what), 1);
		/* A successor that hangs is given up, and the worker goes on. */
		assert_int_equal(all_lived(what), places[i].when == ORDERS_AT_COMMAND);
	}
	end("hang");
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_RIG(test_a_successor_may_end_at_any_command),
		WITH_RIG(test_a_worker_may_end_at_anything_it_tells_of_its_device),
		WITH_RIG(test_a_worker_may_leave_out_anything_of_its_device),
		WITH_RIG(test_a_worker_that_ends_when_it_is_to_stop_has_another_successor),
		WITH_RIG(test_neither_of_the_two_may_hang),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
