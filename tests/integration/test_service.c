/* SPDX-License-Identifier: Apache-2.0 */

/* vsockd as a service, to a service manager that manager.h plays. */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"
#include "tests/integration/manager.h"

#define LIMIT MANAGER_LIMIT

static const char *const with_file[] = {"", "--config", "@/vsockd.yaml", NULL};

static ino_t inode_of(struct manager *manager, const char *name)
{
	struct stat found;

	assert_int_equal(stat(daemon_path(&manager->daemon, name), &found), 0);
	return found.st_ino;
}

static bool is_there(struct manager *manager, const char *name)
{
	return access(daemon_path(&manager->daemon, name), F_OK) == 0;
}

static struct guest *start_guest(struct manager *manager)
{
	struct guest_options options = {.socket = daemon_path(&manager->daemon, "vm")};

	assert_int_equal(guest_start(&manager->guest, &options), 0);
	manager->has_guest = true;
	return &manager->guest;
}

static void end_guest(struct manager *manager)
{
	guest_end(&manager->guest);
	manager->has_guest = false;
}

/* A host program that is connected asks for port 7, and is answered. */
static void expect_answer(struct manager *manager, int fd)
{
	struct guest *guest = &manager->guest;
	struct host_stream stream;
	uint32_t port;
	int64_t deadline = deadline_in(LIMIT);

	host_stream_init(&stream, fd);
	guest_watch(guest, &stream.watch);
	while (host_stream_take_ok(&stream, &port) == 0)
		assert_true(deadline_left(deadline) > 0 &&
			    guest_poll(guest, deadline_left(deadline)) >= 0);
	assert_non_null(guest_accept(guest, 7));
	guest_unwatch(guest, &stream.watch);
	host_stream_end(&stream);
}

#define ONE_VM "vms: [{socket: @/vm, uds-path: @/host}]\n"

/* ---- tests ---- */

static void test_the_manager_hears_of_begin_reload_and_end(void **state)
{
	struct manager *manager = *state;
	char value[256];

	manager_write_file(manager, ONE_VM);
	manager_start(manager);
	assert_string_equal(manager_value(manager->last, "STATUS", value), "1 VM");
	assert_true(is_there(manager, "vm"));

	manager_write_file(manager, "vms: [{socket: @/vm, uds-path: @/host},"
				    "{guest-cid: 4, socket: @/vm4, uds-path: @/host4}]\n");
	assert_int_equal(kill(manager->daemon.pid, SIGHUP), 0);
	manager_await(manager, "RELOADING");
	assert_non_null(manager_value(manager->last, "MONOTONIC_USEC", value));
	manager_await(manager, "READY");
	assert_string_equal(manager_value(manager->last, "STATUS", value), "2 VMs");

	manager_write_file(manager, "vms: [\n");
	assert_int_equal(kill(manager->daemon.pid, SIGHUP), 0);
	manager_await(manager, "RELOADING");
	manager_await(manager, "READY");
	assert_string_equal(manager_value(manager->last, "STATUS", value),
			    "the last reload was refused, see the log");
	manager_end(manager);
}

static void test_sockets_are_kept_and_come_back(void **state)
{
	struct manager *manager = *state;
	ino_t vm, host;

	manager_write_file(manager, ONE_VM "control: @/control\nmetrics: @/metrics\n");
	manager_start(manager);
	assert_int_equal(manager->n_stored, 5);
	vm = inode_of(manager, "vm");
	host = inode_of(manager, "host");
	for (int i = 0; i < 3; i++) {
		manager_end(manager);
		manager_start(manager);
		assert_int_equal(inode_of(manager, "vm"), vm);
		assert_int_equal(inode_of(manager, "host"), host);
		assert_int_equal(manager->n_stored, 5);
		assert_false(daemon_log_has(&manager->daemon, "belongs to no VM"));
		start_guest(manager);
		end_guest(manager);
	}
	manager_end(manager);
}

static void test_who_connects_during_a_restart_waits_and_is_served(void **state)
{
	struct manager *manager = *state;
	struct guest *guest;
	int before, between;

	manager_write_file(manager, ONE_VM);
	manager_start(manager);
	guest = start_guest(manager);
	assert_int_equal(guest_listen(guest, 7), 0);
	before = host_connect(daemon_path(&manager->daemon, "host"), 7, LIMIT);
	assert_true(before >= 0);
	expect_answer(manager, before);

	manager_end(manager);
	end_guest(manager);
	/* Nobody is there but the sockets. */
	between = host_connect(daemon_path(&manager->daemon, "host"), 7, LIMIT);
	assert_true(between >= 0);
	manager_start(manager);
	assert_int_equal(socket_wait(between, POLLIN, deadline_in(200)), -ETIMEDOUT);
	guest = start_guest(manager);
	assert_int_equal(guest_listen(guest, 7), 0);
	expect_answer(manager, between);
	end_guest(manager);

	/* A front-end may come first, too: its messages wait. */
	manager_end(manager);
	between = socket_connect(daemon_path(&manager->daemon, "vm"), SOCK_STREAM, LIMIT);
	assert_true(between >= 0);
	manager_start(manager);
	assert_int_equal(daemon_wait_log(&manager->daemon, "front-end connected", LIMIT), 0);
	close(between);
	start_guest(manager);
	end_guest(manager);
	manager_end(manager);
}

static void test_a_socket_whose_file_was_replaced_is_made_anew(void **state)
{
	struct manager *manager = *state;
	ino_t before;
	int other;

	manager_write_file(manager, ONE_VM);
	manager_start(manager);
	before = inode_of(manager, "host");
	manager_end(manager);
	/* Another program took the place, and left. */
	assert_int_equal(unlink(daemon_path(&manager->daemon, "host")), 0);
	other = socket_listen(daemon_path(&manager->daemon, "host"), SOCK_STREAM);
	assert_true(other >= 0);
	close(other);
	manager_start(manager);
	assert_true(daemon_log_has(&manager->daemon, "not the one that was passed"));
	assert_int_not_equal(inode_of(manager, "host"), before);
	assert_int_equal(guest_listen(start_guest(manager), 7), 0);
	expect_answer(manager, host_connect(daemon_path(&manager->daemon, "host"), 7, LIMIT));
	/* The old one is not kept any longer. */
	assert_int_equal(manager->n_stored, 3);
	manager_end(manager);
}

static void test_sockets_of_an_activator_are_used_and_left(void **state)
{
	struct manager *manager = *state;
	struct stat found;
	ino_t before;

	manager->fds[0] = socket_listen(daemon_path(&manager->daemon, "host"), SOCK_STREAM);
	manager->fds[1] = socket_listen(daemon_path(&manager->daemon, "vm"), SOCK_STREAM);
	snprintf(manager->names[0], sizeof(manager->names[0]), "vsockd.socket");
	snprintf(manager->names[1], sizeof(manager->names[1]), "vsockd@vm.socket");
	manager->n_stored = 2;
	assert_int_equal(chmod(daemon_path(&manager->daemon, "host"), 0642), 0);
	before = inode_of(manager, "host");
	manager_write_file(manager, ONE_VM);
	manager_start(manager);
	assert_int_equal(guest_listen(start_guest(manager), 7), 0);
	expect_answer(manager, host_connect(daemon_path(&manager->daemon, "host"), 7, LIMIT));
	end_guest(manager);
	manager_end(manager);
	/* The third is vsockd's own, for messages. */
	assert_int_equal(manager->n_stored, 3);
	assert_int_equal(stat(daemon_path(&manager->daemon, "host"), &found), 0);
	assert_int_equal(found.st_ino, before);
	assert_int_equal(found.st_mode & 0777, 0642);
}

static void test_who_wakes_an_activator_waits_for_the_guest(void **state)
{
	struct manager *manager = *state;
	struct guest *guest;
	int host;

	manager->fds[0] = socket_listen(daemon_path(&manager->daemon, "host"), SOCK_STREAM);
	snprintf(manager->names[0], sizeof(manager->names[0]), "vsockd.socket");
	manager->n_stored = 1;
	host = host_connect(daemon_path(&manager->daemon, "host"), 7, LIMIT);
	assert_true(host >= 0);
	manager_write_file(manager, ONE_VM);
	manager_start(manager);
	assert_int_equal(socket_wait(host, POLLIN, deadline_in(200)), -ETIMEDOUT);
	guest = start_guest(manager);
	assert_int_equal(guest_listen(guest, 7), 0);
	expect_answer(manager, host);
	end_guest(manager);
	manager_end(manager);
}

static void test_a_socket_named_by_its_number_is_left_to_who_named_it(void **state)
{
	static const char *const arguments[] = {"", "--fd", "3", "--uds-path", "@/host", NULL};
	struct manager *manager = *state;

	manager->fds[0] = socket_listen(daemon_path(&manager->daemon, "vm"), SOCK_STREAM);
	snprintf(manager->names[0], sizeof(manager->names[0]), "vsockd.socket");
	manager->n_stored = 1;
	manager_start_with(manager, arguments);
	manager_await(manager, "READY");
	assert_int_equal(guest_listen(start_guest(manager), 7), 0);
	expect_answer(manager, host_connect(daemon_path(&manager->daemon, "host"), 7, LIMIT));
	end_guest(manager);
	assert_false(daemon_log_has(&manager->daemon, "belongs to no VM"));
	manager_end(manager);
}

static void test_a_start_that_fails_leaves_what_is_kept(void **state)
{
	struct manager *manager = *state;
	ino_t host;
	int other;

	manager_write_file(manager, ONE_VM);
	manager_start(manager);
	host = inode_of(manager, "host");
	manager_end(manager);
	/* One socket of the next start cannot be made. */
	other = socket_listen(daemon_path(&manager->daemon, "taken"), SOCK_STREAM);
	assert_true(other >= 0);
	manager_write_file(manager, ONE_VM "control: @/new\nmetrics: @/taken\n");
	manager_start_with(manager, with_file);
	assert_int_equal(daemon_wait_log(&manager->daemon, "another program listens on it", LIMIT),
			 0);
	assert_int_equal(daemon_end(&manager->daemon, LIMIT), EX_CANTCREAT);
	assert_false(manager_hear(manager, 0));
	assert_false(is_there(manager, "new"));
	assert_int_equal(inode_of(manager, "host"), host);
	close(other);
	manager_start(manager);
	assert_int_equal(inode_of(manager, "host"), host);
	manager_end(manager);
}

static void test_a_reload_moves_what_is_kept(void **state)
{
	struct manager *manager = *state;

	manager_write_file(manager, ONE_VM);
	manager_start(manager);
	assert_int_equal(manager->n_stored, 3);
	manager_write_file(manager,
			   "vms: [{socket: @/vm, uds-path: @/else, listen: ['5:unix:@/five']}]\n");
	assert_int_equal(kill(manager->daemon.pid, SIGHUP), 0);
	manager_await(manager, "RELOADING");
	manager_await(manager, "READY");
	assert_int_equal(manager->n_stored, 4);
	for (size_t i = 0; i < manager->n_stored; i++)
		assert_null(strstr(manager->names[i], "/host"));
	manager_end(manager);
	/* A VM less in the file of the next start. */
	manager_write_file(manager, "vms: [{guest-cid: 8, socket: @/vm, uds-path: @/else}]\n");
	manager_start(manager);
	assert_true(daemon_log_has(&manager->daemon, "belongs to no VM and is closed"));
	while (manager->n_stored > 3 && manager_hear(manager, deadline_in(LIMIT)))
		;
	assert_int_equal(manager->n_stored, 3);
	manager_end(manager);
}

static void wait_state(pid_t pid, char state)
{
	int64_t deadline = deadline_in(LIMIT);

	while (daemon_process_state(pid) != state) {
		assert_true(deadline_left(deadline) > 0);
		poll(NULL, 0, 1);
	}
}

static void test_the_watchdog_hears_of_both_loops(void **state)
{
	struct manager *manager = *state;
	pid_t pids[DAEMON_PIDS_MAX];

	manager->service.watchdog = "150000";
	manager_write_file(manager, ONE_VM);
	manager_start(manager);
	for (int i = 0; i < 3; i++) {
		manager->last[0] = '\0';
		manager_await(manager, "WATCHDOG");
	}
	/* A front that hangs is not covered by a spawner that lives. */
	assert_true(daemon_find(&manager->daemon, "vsockd", pids) >= 1);
	assert_int_equal(kill(pids[0], SIGSTOP), 0);
	wait_state(pids[0], 'T');
	/* What it said before is passed on by a spawner that then sleeps. */
	wait_state(manager->daemon.pid, 'S');
	while (manager_hear(manager, deadline_in(50)))
		;
	assert_false(manager_hear(manager, deadline_in(600)));
	assert_int_equal(kill(pids[0], SIGCONT), 0);
	manager_await(manager, "WATCHDOG");
	manager_end(manager);
}

#define WITH_MANAGER(test) cmocka_unit_test_setup_teardown(test, manager_set_up, manager_tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_MANAGER(test_the_manager_hears_of_begin_reload_and_end),
		WITH_MANAGER(test_sockets_are_kept_and_come_back),
		WITH_MANAGER(test_who_connects_during_a_restart_waits_and_is_served),
		WITH_MANAGER(test_a_socket_whose_file_was_replaced_is_made_anew),
		WITH_MANAGER(test_sockets_of_an_activator_are_used_and_left),
		WITH_MANAGER(test_who_wakes_an_activator_waits_for_the_guest),
		WITH_MANAGER(test_a_socket_named_by_its_number_is_left_to_who_named_it),
		WITH_MANAGER(test_a_start_that_fails_leaves_what_is_kept),
		WITH_MANAGER(test_a_reload_moves_what_is_kept),
		WITH_MANAGER(test_the_watchdog_hears_of_both_loops),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
