/* SPDX-License-Identifier: Apache-2.0 */

/* Who may reach which port, how often, and how much. */

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/replacer.h"
#include "tests/integration/setup.h"
#include "tests/integration/tool.h"
#include "tests/integration/transfer.h"

#define LIMIT SETUP_LIMIT

static int make_setup(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	return *state ? 0 : -1;
}

static void expect_refusal(struct guest *guest, uint64_t cid, uint32_t port)
{
	struct guest_connection *connection = guest_connect(guest, cid, port);

	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
	guest_forget(connection);
}

static void test_a_guest_reaches_the_ports_that_it_may(void **state)
{
	struct setup *setup = *state;
	int listeners[4];
	struct guest *guest;

	setup_start(setup, 1, "allow-outgoing=80-82,deny-outgoing=81", NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	for (uint32_t i = 0; i < 4; i++)
		listeners[i] = host_listen(setup->uds_paths[0], 80 + i);
	for (uint32_t i = 0; i < 4; i++) {
		struct guest_connection *connection;

		if (i % 2) {
			expect_refusal(guest, PACKET_HOST_CID, 80 + i);
			continue;
		}
		connection = guest_connect_wait(guest, PACKET_HOST_CID, 80 + i, LIMIT);
		assert_non_null(connection);
		close(host_accept(listeners[i], LIMIT));
		assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	}
	assert_int_equal(
		daemon_wait_log(&setup->daemon, "port 81: that port is denied to the guest", LIMIT),
		0);
	for (uint32_t i = 0; i < 4; i++)
		close(listeners[i]);
}

static void test_a_guest_is_reached_at_the_ports_that_may_be(void **state)
{
	struct guest_connection *connection;
	struct setup *setup = *state;
	struct guest *guest, *other;
	struct host_stream stream;
	int fd;

	setup_start(setup, 2, "deny-incoming=22", NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	other = setup_guest(setup, 1, (struct guest_options){0});
	assert_int_equal(guest_listen(guest, 22), 0);
	assert_int_equal(guest_listen(guest, 23), 0);

	fd = host_connect(setup->uds_paths[0], 22, LIMIT);
	assert_int_equal(host_wait_end(fd, LIMIT), 0);
	close(fd);
	assert_int_equal(daemon_wait_log(&setup->daemon,
					 "guest port 22: that port is not for host programs",
					 LIMIT),
			 0);
	expect_refusal(other, setup_cid(0), 22);
	assert_int_equal(
		daemon_wait_log(&setup->daemon, "port 22: that port of the guest is denied", LIMIT),
		0);
	/* The guest itself was not asked; and another port is another thing. */
	assert_null(guest_accept(guest, 22));
	host_stream_init(&stream, host_connect(setup->uds_paths[0], 23, LIMIT));
	guest_watch(guest, &stream.watch);
	connection = guest_accept_wait(guest, 23, LIMIT);
	assert_non_null(connection);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_more_connections_in_a_second_than_may_be_are_refused(void **state)
{
	struct guest_connection *connections[20];
	const size_t n = sizeof(connections) / sizeof(connections[0]);
	struct setup *setup = *state;
	struct guest *guest;
	int listener, fd;
	char byte = 'x';

	setup_start(setup, 1, "max-connection-rate=3", NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	listener = host_listen(setup->uds_paths[0], 80);
	/* At once: as the clock moves on, one or the other more than three may be admitted. */
	for (size_t i = 0; i < n; i++) {
		connections[i] = guest_connect(guest, PACKET_HOST_CID, 80);
		assert_non_null(connections[i]);
	}
	for (size_t i = 0; i < n; i++)
		while (connections[i]->state == GUEST_CONNECTING)
			assert_true(guest_poll(guest, LIMIT) >= 0);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(connections[i]->state, GUEST_ESTABLISHED);
	assert_int_equal(daemon_wait_log(&setup->daemon, "more connections in a second", LIMIT), 0);
	/* What runs goes on. */
	assert_int_equal(guest_wait_state(connections[0], GUEST_ESTABLISHED, LIMIT), 0);
	fd = host_accept(listener, LIMIT);
	assert_int_equal(guest_send_all(connections[0], &byte, 1, LIMIT), 0);
	assert_int_equal(host_read(fd, &byte, 1, LIMIT), 0);
	close(fd);
	/* And a second later there is room again. */
	assert_int_equal(guest_poll_for(guest, 1100), 0);
	assert_non_null(guest_connect_wait(guest, PACKET_HOST_CID, 80, LIMIT));
	close(listener);
}

static void test_more_bytes_in_a_second_than_may_be_wait_and_none_is_lost(void **state)
{
	struct setup *setup = *state;
	int64_t begin, took;

	setup_start(setup, 1, "max-bandwidth=2000000", NULL);
	setup_guest(setup, 0, (struct guest_options){0});
	begin = deadline_in(0);
	/* A megabyte each way: at two a second, but for what the bucket holds. */
	transfer_all(setup, 0, 80, 1u << 20);
	took = deadline_in(0) - begin;
	assert_in_range(took, 700, LIMIT);
	assert_int_equal(
		daemon_wait_log(&setup->daemon, "held up: 2000000 bytes in a second", LIMIT), 0);
}

/* Each successor goes on with what its predecessor had left: no new second begins. */
static void test_a_replacement_gives_no_bytes_for_free(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;
	struct guest *guest;
	size_t n_replaced = 0;
	int64_t begin;

	setup_start(setup, 1, "max-bandwidth=1000000", TOOL_ARGUMENTS);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	begin = deadline_in(0);
	transfer_start(&transfer, setup, 0, 80, 512 * 1024);
	for (size_t n = 32 * 1024; n <= 512 * 1024; n += 32 * 1024, n_replaced++) {
		transfer_run_to(&transfer, n);
		assert_int_equal(replace_worker(setup, guest, setup_cid(0)), 0);
	}
	transfer_finish(&transfer);
	/* A bucket for each of them would be twice what was moved at all. */
	assert_in_range(n_replaced, 16, 16);
	assert_in_range(deadline_in(0) - begin, 850, LIMIT);
}

static void reload(struct setup *setup, const char *vm_options)
{
	size_t n = daemon_count_log(&setup->daemon, "reload: 0 added, 0 removed, 1 changed");

	setup_write_file(setup, 1, vm_options);
	assert_int_equal(kill(setup->daemon.pid, SIGHUP), 0);
	assert_int_equal(daemon_wait_log_times(&setup->daemon,
					       "reload: 0 added, 0 removed, 1 changed", n + 1,
					       LIMIT),
			 0);
}

static void test_a_changed_limit_holds_for_the_vm_that_runs(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;
	struct guest *guest;
	int64_t begin;
	int fd;

	setup_choose_file(setup);
	setup_start(setup, 1, "max-bandwidth=65536", NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	assert_int_equal(guest_listen(guest, 22), 0);
	/* At that rate it takes a minute. */
	transfer_start(&transfer, setup, 0, 80, 2u << 20);
	transfer_run_to(&transfer, 32 * 1024);
	begin = deadline_in(0);
	reload(setup, "deny-incoming=22");
	transfer_finish(&transfer);
	assert_in_range(deadline_in(0) - begin, 0, 20000);
	fd = host_connect(setup->uds_paths[0], 22, LIMIT);
	assert_int_equal(host_wait_end(fd, LIMIT), 0);
	close(fd);

	reload(setup, "max-bandwidth=2000000");
	begin = deadline_in(0);
	transfer_all(setup, 0, 81, 1u << 20);
	assert_in_range(deadline_in(0) - begin, 700, LIMIT);
	fd = host_connect(setup->uds_paths[0], 22, LIMIT);
	assert_non_null(guest_accept_wait(guest, 22, LIMIT));
	close(fd);
}

/* It may be closed before its line is sent, or with that unread. */
static bool is_turned_away(const char *path)
{
	int fd = host_connect(path, 22, LIMIT), r = fd;

	if (fd >= 0) {
		r = host_wait_end(fd, LIMIT);
		close(fd);
	}
	return r == 0 || r == -EPIPE || r == -ECONNRESET;
}

static void expect_no_entry(struct setup *setup, const char *line)
{
	size_t n = daemon_count_log(&setup->daemon, line);

	assert_true(is_turned_away(setup->uds_paths[0]));
	assert_int_equal(daemon_wait_log_times(&setup->daemon, line, n + 1, LIMIT), 0);
}

/* A stream from a host program to port 22 of the guest, and its orderly end. */
static void expect_entry(struct setup *setup, struct guest *guest)
{
	struct guest_connection *connection;
	struct host_stream stream;

	host_stream_init(&stream, host_connect(setup->uds_paths[0], 22, LIMIT));
	guest_watch(guest, &stream.watch);
	connection = guest_accept_wait(guest, 22, LIMIT);
	assert_non_null(connection);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_a_program_talks_with_the_guest_if_its_user_may(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connection;
	char options[64], refusal[96];
	struct guest *guest;
	int listener;

	setup_choose_file(setup);
	(void)snprintf(options, sizeof(options), "allow-uid=%u", geteuid());
	setup_start(setup, 1, options, NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	assert_int_equal(guest_listen(guest, 22), 0);
	listener = host_listen(setup->uds_paths[0], 80);
	expect_entry(setup, guest);
	connection = guest_connect_wait(guest, PACKET_HOST_CID, 80, LIMIT);
	assert_non_null(connection);
	close(host_accept(listener, LIMIT));
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);

	(void)snprintf(options, sizeof(options), "deny-uid=%u", geteuid());
	reload(setup, options);
	(void)snprintf(refusal, sizeof(refusal),
		       "host program refused: user %u, group %u may not talk with the guest",
		       geteuid(), getegid());
	expect_no_entry(setup, refusal);
	expect_refusal(guest, PACKET_HOST_CID, 80);
	assert_true(daemon_log_has(&setup->daemon,
				   "host port 80: who listens there may not talk with the guest"));
	/* Nobody of it was let in meanwhile. */
	assert_null(guest_accept(guest, 22));

	(void)snprintf(options, sizeof(options), "deny-gid=%u", getegid());
	reload(setup, options);
	expect_no_entry(setup, refusal);
	(void)snprintf(options, sizeof(options), "allow-gid=%u,allow-uid=%u", getegid(),
		       geteuid() + 1);
	reload(setup, options);
	expect_entry(setup, guest);
	close(listener);
}

static void test_who_may_not_come_costs_those_who_may_nothing(void **state)
{
	struct setup *setup = *state;
	char options[64];
	struct guest *guest;

	setup_choose_file(setup);
	(void)snprintf(options, sizeof(options), "deny-uid=%u,max-connection-rate=1", geteuid());
	setup_start(setup, 1, options, NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	assert_int_equal(guest_listen(guest, 22), 0);
	for (int i = 0; i < 20; i++)
		assert_true(is_turned_away(setup->uds_paths[0]));
	assert_int_equal(
		daemon_wait_log_times(&setup->daemon, "may not talk with the guest", 20, LIMIT), 0);
	assert_false(daemon_log_has(&setup->daemon, "more connections in a second"));
	(void)snprintf(options, sizeof(options), "allow-uid=%u,max-connection-rate=1", geteuid());
	reload(setup, options);
	expect_entry(setup, guest);
}

/* As that user, who may be there: exits with 0 when the guest's port was not reached. */
static pid_t refused_child(const char *path, uid_t user)
{
	pid_t child = fork();

	if (child)
		return child;
	if (setresgid(user, user, user) || setresuid(user, user, user))
		_exit(2);
	_exit(is_turned_away(path) ? 0 : 1);
}

static void test_users_that_vsockd_does_not_run_as_are_told_apart(void **state)
{
	const uid_t stranger = 54321;
	struct setup *setup = *state;
	struct guest *guest;
	int status;
	pid_t child;

	if (geteuid() != 0) {
		print_message("skipped: only root can become another user\n");
		skip();
	}
	setup_start(setup, 1, "uds-mode=666,deny-uid=54321", NULL);
	assert_int_equal(chmod(setup->daemon.directory, 0711), 0);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	assert_int_equal(guest_listen(guest, 22), 0);
	child = refused_child(setup->uds_paths[0], stranger);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(daemon_wait_log(&setup->daemon,
					 "host program refused: user 54321, group 54321 may not",
					 LIMIT),
			 0);
	expect_entry(setup, guest);
}

/* Nobody reads, and the guest sends what it may on each: all of that has room. */
static void test_buffers_are_bounded_and_who_has_one_keeps_it(void **state)
{
	static uint8_t bytes[16 * 1024], got[sizeof(bytes)];
	struct guest_connection *connections[64];
	struct setup *setup = *state;
	struct guest *guest;
	int listener, fds[64];
	size_t n = 0;

	setup_start(setup, 1, "max-buffer-memory=1048576", NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	listener = host_listen(setup->uds_paths[0], 80);
	while ((connections[n] = guest_connect_wait(guest, PACKET_HOST_CID, 80, LIMIT))) {
		fds[n] = host_accept(listener, LIMIT);
		assert_true(++n < 64);
	}
	assert_true(n > 4); /* so many would have all of their 256 KiB */
	assert_int_equal(daemon_wait_log(&setup->daemon,
					 "connection refused: all 1048576 bytes for buffers",
					 LIMIT),
			 0);
	for (size_t i = 0; i < n; i++) {
		pattern_fill(bytes, sizeof(bytes), i, 0);
		assert_int_equal(guest_send_all(connections[i], bytes, sizeof(bytes), LIMIT), 0);
	}
	for (size_t i = 0; i < n; i++) {
		pattern_fill(bytes, sizeof(bytes), i, 0);
		assert_int_equal(host_read(fds[i], got, sizeof(got), LIMIT), 0);
		assert_memory_equal(got, bytes, sizeof(bytes));
		close(fds[i]);
		assert_int_equal(guest_wait_state(connections[i], GUEST_CLOSED, LIMIT), 0);
	}
	transfer_all(setup, 0, 81, 1u << 20);
	close(listener);
}

#define OWN(name) cmocka_unit_test_setup_teardown(name, make_setup, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		OWN(test_a_guest_reaches_the_ports_that_it_may),
		OWN(test_a_guest_is_reached_at_the_ports_that_may_be),
		OWN(test_more_connections_in_a_second_than_may_be_are_refused),
		OWN(test_more_bytes_in_a_second_than_may_be_wait_and_none_is_lost),
		OWN(test_a_replacement_gives_no_bytes_for_free),
		OWN(test_a_changed_limit_holds_for_the_vm_that_runs),
		OWN(test_buffers_are_bounded_and_who_has_one_keeps_it),
		OWN(test_a_program_talks_with_the_guest_if_its_user_may),
		OWN(test_who_may_not_come_costs_those_who_may_nothing),
		OWN(test_users_that_vsockd_does_not_run_as_are_told_apart),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
