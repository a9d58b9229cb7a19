/* SPDX-License-Identifier: Apache-2.0 */

/* A configuration file that changes while VMs run. */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"
#include "tests/integration/transfer.h"

#define KIB   1024u
#define LIMIT SETUP_LIMIT

/* VMs of setup_write_file(). */
#define VM(number) (1u << (number))

static int start_with_file(void **state)
{
	struct setup *setup = calloc(1, sizeof(*setup));

	*state = setup;
	if (!setup)
		return -1;
	setup_choose_file(setup);
	setup_start(setup, 2, NULL, NULL);
	return 0;
}

static void reload(struct setup *setup, const char *awaited)
{
	size_t n = daemon_count_log(&setup->daemon, awaited);

	assert_int_equal(kill(setup->daemon.pid, SIGHUP), 0);
	assert_int_equal(daemon_wait_log_times(&setup->daemon, awaited, n + 1, LIMIT), 0);
}

static void write_file(struct setup *setup, const char *text)
{
	FILE *file = fopen(daemon_path(&setup->daemon, "vsockd.yaml"), "w");

	assert_non_null(file);
	for (; *text; text++) {
		if (*text == '@')
			fputs(setup->daemon.directory, file);
		else
			fputc(*text, file);
	}
	assert_int_equal(fclose(file), 0);
}

static void write_vms(struct setup *setup, size_t n_vms, const char *options)
{
	FILE *file = fopen(daemon_path(&setup->daemon, "vsockd.yaml"), "w");

	assert_non_null(file);
	fputs("vms:\n", file);
	for (size_t i = 0; i < n_vms; i++)
		fprintf(file, "- {guest-cid: %zu, socket: %s/many%zu, uds-path: %s/hosts%zu, %s}\n",
			1000 + i, setup->daemon.directory, i, setup->daemon.directory, i, options);
	assert_int_equal(fclose(file), 0);
}

/* The paths as setup_start() names them, of VMs that it has not started. */
static void name_vm(struct setup *setup, size_t vm)
{
	snprintf(setup->sockets[vm], sizeof(setup->sockets[vm]), "%s/vm%zu",
		 setup->daemon.directory, vm);
	snprintf(setup->uds_paths[vm], sizeof(setup->uds_paths[vm]), "%s/host%zu",
		 setup->daemon.directory, vm);
}

static bool is_there(struct setup *setup, const char *name)
{
	return access(daemon_path(&setup->daemon, name), F_OK) == 0;
}

static struct guest *start_guest(struct setup *setup, size_t vm)
{
	return setup_guest(setup, vm, (struct guest_options){0});
}

/* What setup_stop() looks at was counted before. */
static void forget_count(struct setup *setup)
{
	setup->n_fds = -1;
}

static void test_a_vm_comes_while_another_moves_bytes(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;
	pid_t worker;

	start_guest(setup, 0);
	worker = setup_worker(setup, 0);
	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	transfer_run_to(&transfer, 100 * KIB);
	setup_write_file(setup, VM(0) | VM(1) | VM(2), NULL);
	reload(setup, "reload: 1 added, 0 removed, 0 changed");
	transfer_run_to(&transfer, 500 * KIB);

	name_vm(setup, 2);
	setup->n_vms = 3;
	start_guest(setup, 2);
	transfer_all(setup, 2, 2000, 300 * KIB);
	transfer_finish(&transfer);
	assert_int_equal(setup_worker(setup, 0), worker);
	assert_true(daemon_log_has(&setup->daemon, "vm=5 notice: reload: added"));
	forget_count(setup);
}

static void test_a_vm_goes_while_another_moves_bytes(void **state)
{
	struct setup *setup = *state;
	struct guest *going = start_guest(setup, 1);
	struct transfer transfer;
	pid_t worker;

	start_guest(setup, 0);
	worker = setup_worker(setup, 0);
	transfer_all(setup, 1, 2000, 100 * KIB);
	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	transfer_run_to(&transfer, 100 * KIB);
	setup_write_file(setup, VM(0), NULL);
	reload(setup, "reload: 0 added, 1 removed, 0 changed");
	transfer_run_to(&transfer, 500 * KIB);

	assert_int_equal(host_wait_end(going->vhost.fd, LIMIT), 0);
	assert_false(is_there(setup, "vm1"));
	assert_false(is_there(setup, "host1"));
	setup_end_guest(setup, 1);
	transfer_finish(&transfer);
	assert_int_equal(setup_worker(setup, 0), worker);
	forget_count(setup);
}

static void test_a_vm_that_has_gone_may_come_again_and_again(void **state)
{
	struct setup *setup = *state;

	for (int i = 0; i < 5; i++) {
		setup_write_file(setup, VM(0), NULL);
		reload(setup, "reload: 0 added, 1 removed, 0 changed");
		setup_write_file(setup, VM(0) | VM(1), NULL);
		reload(setup, "reload: 1 added, 0 removed, 0 changed");
		start_guest(setup, 1);
		transfer_all(setup, 1, 2000, 100 * KIB);
		setup_end_guest(setup, 1);
	}
	/* As many fds and processes as before, which setup_stop() looks at as well. */
	setup_wait_idle(setup);
}

static void test_a_file_that_is_wrong_changes_nothing_and_says_why(void **state)
{
	static const struct {
		const char *file;
		const char *reason;
	} wrong[] = {
		{"vms: [", ": not YAML: "},
		{"vms: [{guest-cid: 3, sockte: @/vm0}]", "did you mean \"socket\"?"},
		{"vms: [{guest-cid: 9, socket: @/none/vm, uds-path: @/host9}]", "none"},
		{"vms: [{guest-cid: 9, socket: @/vm9, uds-path: @/log}]", "regular file"},
		/* A new VM's first socket can be made, but not the second one. */
		{"vms: [{guest-cid: 9, socket: @/vm9, uds-path: @/taken}]",
		 "a socket cannot be made"},
	};
	struct setup *setup = *state;
	struct transfer transfer;
	struct stat before, after;
	int taken = socket_listen(daemon_path(&setup->daemon, "taken"), SOCK_STREAM);

	assert_true(taken >= 0);
	start_guest(setup, 0);
	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	assert_int_equal(stat(setup->sockets[1], &before), 0);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		size_t n = daemon_count_log(&setup->daemon, wrong[i].reason);

		write_file(setup, wrong[i].file);
		reload(setup, "nothing has changed");
		if (daemon_count_log(&setup->daemon, wrong[i].reason) != n + 1)
			fail_msg("\"%s\" is not said", wrong[i].reason);
		assert_false(is_there(setup, "vm9"));
		transfer_run_to(&transfer, (i + 1) * 100 * KIB);
	}
	assert_int_equal(unlink(daemon_path(&setup->daemon, "vsockd.yaml")), 0);
	reload(setup, "No such file or directory; nothing has changed");
	assert_int_equal(stat(setup->sockets[1], &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	transfer_finish(&transfer);
	start_guest(setup, 1);
	transfer_all(setup, 1, 2000, 100 * KIB);
	close(taken);
}

/* Until that has happened to that file of the directory; what came before is over. */
static void await_event(int watch, uint32_t kind, const char *name)
{
	static _Alignas(struct inotify_event) char room[4096];
	static size_t at, len;
	int64_t deadline = deadline_in(LIMIT);
	const struct inotify_event *event;

	do {
		if (at == len) {
			if (socket_wait(watch, POLLIN, deadline) != 0)
				fail_msg("%s: event %x does not come", name, kind);
			len = (size_t)read(watch, room, sizeof(room));
			at = 0;
		}
		event = (const struct inotify_event *)(const void *)&room[at];
		at += sizeof(*event) + event->len;
	} while (!(event->mask & kind) || strcmp(event->name, name) != 0);
}

static void test_who_reads_that_a_file_is_refused_finds_nothing_of_it(void **state)
{
	struct setup *setup = *state;
	int taken = socket_listen(daemon_path(&setup->daemon, "taken"), SOCK_STREAM);
	int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

	assert_true(taken >= 0 && watch >= 0);
	write_file(setup, "vms: [{guest-cid: 9, socket: @/vm9, uds-path: @/taken}]");
	assert_true(inotify_add_watch(watch, setup->daemon.directory,
				      IN_CREATE | IN_DELETE | IN_MODIFY) >= 0);
	assert_int_equal(kill(setup->daemon.pid, SIGHUP), 0);
	await_event(watch, IN_CREATE, "vm9");
	await_event(watch, IN_DELETE, "vm9");
	await_event(watch, IN_MODIFY, "log");
	assert_int_equal(daemon_count_log(&setup->daemon, "nothing has changed"), 1);
	close(watch);
	close(taken);
}

static void test_more_connections_than_open_files_allow_are_refused(void **state)
{
	struct setup *setup = *state;
	struct rlimit limit;
	size_t n_vms, n_most;
	char awaited[64];

	/* The daemon began with the same limit. */
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	n_vms = limit.rlim_max / 65536 + 1;
	if (n_vms > 200) {
		print_message("skipped: there may be %ju open files\n", (uintmax_t)limit.rlim_max);
		skip();
	}
	write_vms(setup, n_vms, "max-connections: 65536");
	reload(setup, "open files would be needed");
	assert_false(is_there(setup, "many0"));
	/* vsockd(8), LIMITS: one for a connection, so many for a VM and for the front. */
	n_most = (limit.rlim_max - 64 - 512) / (1 + 128);
	n_most = n_most < 256 ? n_most : 256;
	write_vms(setup, n_most, "max-connections: 1");
	snprintf(awaited, sizeof(awaited), "reload: %zu added, 2 removed, 0 changed", n_most);
	reload(setup, awaited);
	write_vms(setup, n_most - 1, "max-connections: 1");
	reload(setup, "reload: 0 added, 1 removed, 0 changed");
	setup_write_file(setup, VM(0) | VM(1), NULL);
	snprintf(awaited, sizeof(awaited), "reload: 2 added, %zu removed, 0 changed", n_most - 1);
	reload(setup, awaited);
	start_guest(setup, 0);
	transfer_all(setup, 0, 1000, 100 * KIB);
}

static void test_sockets_move_between_vms(void **state)
{
	struct setup *setup = *state;
	struct stat before, after;

	assert_int_equal(stat(setup->sockets[0], &before), 0);
	write_file(setup, "vms:\n"
			  "- {guest-cid: 3, socket: @/vm1, uds-path: @/host1}\n"
			  "- {guest-cid: 7, socket: @/vm0, uds-path: @/host0}\n");
	reload(setup, "reload: 1 added, 1 removed, 1 changed");
	assert_int_equal(stat(setup->sockets[0], &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	write_file(setup, "vms:\n"
			  "- {guest-cid: 7, socket: @/vm1, uds-path: @/host1}\n"
			  "- {guest-cid: 3, socket: @/vm0, uds-path: @/host0}\n");
	reload(setup, "reload: 0 added, 0 removed, 2 changed");
	write_file(setup, "vms:\n"
			  "- {guest-cid: 4, socket: @/vm1, uds-path: @/host1}\n"
			  "- {guest-cid: 3, socket: @/vm0, uds-path: @/host0}\n");
	reload(setup, "reload: 1 added, 1 removed, 0 changed");
	for (size_t i = 0; i < 2; i++) {
		start_guest(setup, i);
		transfer_all(setup, i, 1000, 100 * KIB);
	}
}

static void test_a_socket_of_a_running_vm_is_exchanged_without_its_session(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, 0);
	struct transfer transfer;
	struct host_stream stream;
	int fd;

	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	transfer_run_to(&transfer, 100 * KIB);
	write_file(setup, "vms:\n"
			  "- {guest-cid: 3, socket: @/other, uds-path: @/elsewhere}\n"
			  "- {guest-cid: 4, socket: @/vm1, uds-path: @/host1}\n");
	reload(setup, "reload: 0 added, 0 removed, 1 changed");
	transfer_finish(&transfer);
	assert_false(is_there(setup, "vm0"));
	assert_false(is_there(setup, "host0"));

	/* Host programs find the guest, and the guest finds them, at the new path. */
	assert_int_equal(guest_listen(guest, 77), 0);
	fd = host_connect(daemon_path(&setup->daemon, "elsewhere"), 77, LIMIT);
	assert_true(fd >= 0);
	host_stream_init(&stream, fd);
	guest_watch(guest, &stream.watch);
	assert_non_null(guest_accept_wait(guest, 77, LIMIT));
	guest_unwatch(guest, &stream.watch);
	host_stream_end(&stream);
	snprintf(setup->uds_paths[0], sizeof(setup->uds_paths[0]), "%s/elsewhere",
		 setup->daemon.directory);
	transfer_all(setup, 0, 1001, 100 * KIB);
	setup_end_guest(setup, 0);
	snprintf(setup->sockets[0], sizeof(setup->sockets[0]), "%s/other", setup->daemon.directory);
	start_guest(setup, 0);
	transfer_all(setup, 0, 1001, 100 * KIB);
}

static void test_the_mode_of_a_socket_changes_in_place(void **state)
{
	struct setup *setup = *state;
	struct stat before, after;

	assert_int_equal(stat(setup->uds_paths[0], &before), 0);
	setup_write_file(setup, VM(0) | VM(1), "uds-mode=666");
	reload(setup, "reload: 0 added, 0 removed, 2 changed");
	assert_int_equal(stat(setup->uds_paths[0], &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	assert_int_equal(before.st_mode & 0777, 0600);
	assert_int_equal(after.st_mode & 0777, 0666);
}

/* Fills up the connections that the guest may have, and counts them. */
static size_t count_connections(struct setup *setup, size_t vm)
{
	struct guest *guest = &setup->guests[vm];
	struct guest_connection *connections[64];
	int listener = host_listen(setup->uds_paths[vm], 9);
	size_t n = 0, n_open = 0;

	assert_true(listener >= 0);
	for (; n < 64; n++)
		connections[n] = guest_connect(guest, 2, 9);
	for (size_t i = 0; i < n; i++) {
		while (connections[i]->state == GUEST_CONNECTING)
			assert_true(guest_poll(guest, LIMIT) >= 0);
		n_open += connections[i]->state == GUEST_ESTABLISHED;
	}
	close(listener);
	return n_open;
}

static void test_limits_hold_from_the_next_session_on(void **state)
{
	struct setup *setup = *state;

	setup_write_file(setup, VM(0) | VM(1), "max-connections=8");
	reload(setup, "reload: 0 added, 0 removed, 2 changed");
	start_guest(setup, 0);
	assert_int_equal(count_connections(setup, 0), 8);
	/* A worker that was started for eight connections could not hold so many. */
	setup_write_file(setup, VM(0) | VM(1), "max-connections=60,tx-buffer-size=1048576");
	/* The last of its lines, so that the front has been told of everything. */
	reload(setup, "reload: 0 added, 0 removed, 2 changed");
	assert_true(daemon_log_has(&setup->daemon, "hold from the next front-end on"));
	assert_int_equal(unlink(strcat(strcpy((char[160]){0}, setup->uds_paths[0]), "_9")), 0);
	setup_end_guest(setup, 0);
	start_guest(setup, 0);
	assert_int_equal(count_connections(setup, 0), 60);
	assert_int_equal(unlink(strcat(strcpy((char[160]){0}, setup->uds_paths[0]), "_9")), 0);
	forget_count(setup);
}

static void test_groups_hold_for_new_connections(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connection;
	struct guest *guests[2];

	for (size_t i = 0; i < 2; i++)
		guests[i] = start_guest(setup, i);
	assert_int_equal(guest_listen(guests[1], 5), 0);
	write_file(setup, "vms:\n"
			  "- {guest-cid: 3, socket: @/vm0, uds-path: @/host0, groups: one}\n"
			  "- {guest-cid: 4, socket: @/vm1, uds-path: @/host1, groups: two}\n");
	reload(setup, "reload: 0 added, 0 removed, 2 changed");
	connection = guest_connect(guests[0], 4, 5);
	while (connection->state == GUEST_CONNECTING)
		assert_true(guest_poll(guests[0], LIMIT) >= 0);
	assert_int_equal(connection->state, GUEST_CLOSED);

	write_file(setup, "vms:\n"
			  "- {guest-cid: 3, socket: @/vm0, uds-path: @/host0, groups: one}\n"
			  "- {guest-cid: 4, socket: @/vm1, uds-path: @/host1, groups: two+one}\n");
	reload(setup, "reload: 0 added, 0 removed, 1 changed");
	connection = guest_connect(guests[0], 4, 5);
	while (connection->state == GUEST_CONNECTING) {
		assert_true(guest_poll(guests[0], 5) >= 0);
		assert_true(guest_poll(guests[1], 5) >= 0);
	}
	assert_int_equal(connection->state, GUEST_ESTABLISHED);
}

/* A host program that came through a rule's socket has the guest at that port. */
static void expect_direct(struct setup *setup, const char *name, uint32_t port)
{
	struct guest *guest = &setup->guests[0];
	int fd = socket_connect(daemon_path(&setup->daemon, name), SOCK_STREAM, LIMIT);
	struct guest_connection *connection;
	char bytes[5];

	assert_true(fd >= 0);
	connection = guest_accept_wait(guest, port, LIMIT);
	assert_non_null(connection);
	assert_int_equal(guest_send_all(connection, "there", 5, LIMIT), 0);
	assert_int_equal(host_read(fd, bytes, 5, LIMIT), 0);
	assert_memory_equal(bytes, "there", 5);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	close(fd);
}

static bool is_reached(struct setup *setup, uint32_t port)
{
	struct guest_connection *connection = guest_connect(&setup->guests[0], 2, port);
	bool is_open;

	while (connection->state == GUEST_CONNECTING)
		assert_true(guest_poll(&setup->guests[0], LIMIT) >= 0);
	is_open = connection->state == GUEST_ESTABLISHED;
	if (is_open)
		assert_int_equal(guest_finish(connection, LIMIT), 0);
	else
		guest_forget(connection);
	return is_open;
}

#define WITH_RULES(rules)                                                                          \
	"vms:\n- {guest-cid: 3, socket: @/vm0, uds-path: @/host0, " rules "}\n"                    \
	"- {guest-cid: 4, socket: @/vm1, uds-path: @/host1}\n"

static void test_rules_come_change_and_go(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, 0);
	int service = socket_listen(daemon_path(&setup->daemon, "service"), SOCK_STREAM);
	struct transfer transfer;
	struct stat before, after;

	assert_true(service >= 0);
	for (uint32_t port = 22; port < 25; port++)
		assert_int_equal(guest_listen(guest, port), 0);
	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	assert_false(is_reached(setup, 700));

	write_file(setup, WITH_RULES("connect: ['700:unix:@/service'], "
				     "listen: ['22:unix:@/a', '23:unix:@/b']"));
	reload(setup, "reload: 0 added, 0 removed, 1 changed");
	assert_true(is_reached(setup, 700));
	expect_direct(setup, "a", 22);
	expect_direct(setup, "b", 23);
	assert_int_equal(stat(daemon_path(&setup->daemon, "b"), &before), 0);

	/* The same sockets in another order, and to another port; one is the uds-path's now. */
	write_file(setup, "vms:\n- {guest-cid: 3, socket: @/vm0, uds-path: @/a, "
			  "listen: ['24:unix:@/b', '22:unix:@/host0']}\n"
			  "- {guest-cid: 4, socket: @/vm1, uds-path: @/host1}\n");
	reload(setup, "reload: 0 added, 0 removed, 1 changed");
	assert_false(is_reached(setup, 700));
	expect_direct(setup, "b", 24);
	expect_direct(setup, "host0", 22);
	assert_int_equal(stat(daemon_path(&setup->daemon, "b"), &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);

	setup_write_file(setup, VM(0) | VM(1), NULL);
	reload(setup, "reload: 0 added, 0 removed, 1 changed");
	assert_false(is_there(setup, "a"));
	assert_false(is_there(setup, "b"));
	transfer_finish(&transfer);
	close(service);
	assert_int_equal(unlink(daemon_path(&setup->daemon, "service")), 0);
}

static void test_reloads_that_come_in_a_row_end_with_the_last_file(void **state)
{
	static const char idle[] = "reload: 0 added, 0 removed, 0 changed";
	struct setup *setup = *state;
	size_t n_idle;

	start_guest(setup, 0);
	for (uint32_t i = 0; i < 40; i++) {
		setup_write_file(setup, VM(0) | VM(1 + i % 3), NULL);
		assert_int_equal(kill(setup->daemon.pid, SIGHUP), 0);
	}
	setup_write_file(setup, VM(0) | VM(1), NULL);
	/* The first line may be that of a file before, and two signals are one: until nothing is
	 * left. */
	reload(setup, "reload: ");
	n_idle = daemon_count_log(&setup->daemon, idle);
	while (daemon_count_log(&setup->daemon, idle) == n_idle)
		reload(setup, "reload: ");
	transfer_all(setup, 0, 1000, 100 * KIB);
	start_guest(setup, 1);
	transfer_all(setup, 1, 1000, 100 * KIB);
	assert_false(is_there(setup, "vm2"));
	assert_false(is_there(setup, "vm3"));
}

static void test_what_takes_a_start_is_said(void **state)
{
	struct setup *setup = *state;

	write_file(setup, "vms:\n"
			  "- {guest-cid: 3, socket: @/vm0, uds-path: @/host0}\n"
			  "- {guest-cid: 4, socket: @/vm1, uds-path: @/host1}\n"
			  "control: @/control\nlog-level: debug\n");
	reload(setup, "control takes effect at the next start");
	reload(setup, "control takes effect at the next start");
	assert_false(is_there(setup, "control"));
	/* The level holds at once, in the front too. */
	start_guest(setup, 0);
	transfer_all(setup, 0, 1000, 100 * KIB);
}

static void test_without_a_file_sighup_is_the_end(void **state)
{
	struct setup *setup = *state;

	assert_int_equal(kill(setup->daemon.pid, SIGHUP), 0);
	assert_int_equal(socket_wait(setup->daemon.pidfd, POLLIN, deadline_in(LIMIT)), 0);
}

#define WITH_FILE(test) cmocka_unit_test_setup_teardown(test, start_with_file, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_FILE(test_a_vm_comes_while_another_moves_bytes),
		WITH_FILE(test_a_vm_goes_while_another_moves_bytes),
		WITH_FILE(test_a_vm_that_has_gone_may_come_again_and_again),
		WITH_FILE(test_a_file_that_is_wrong_changes_nothing_and_says_why),
		WITH_FILE(test_who_reads_that_a_file_is_refused_finds_nothing_of_it),
		WITH_FILE(test_more_connections_than_open_files_allow_are_refused),
		WITH_FILE(test_sockets_move_between_vms),
		WITH_FILE(test_a_socket_of_a_running_vm_is_exchanged_without_its_session),
		WITH_FILE(test_the_mode_of_a_socket_changes_in_place),
		WITH_FILE(test_limits_hold_from_the_next_session_on),
		WITH_FILE(test_groups_hold_for_new_connections),
		WITH_FILE(test_rules_come_change_and_go),
		WITH_FILE(test_reloads_that_come_in_a_row_end_with_the_last_file),
		WITH_FILE(test_what_takes_a_start_is_said),
		cmocka_unit_test_setup_teardown(test_without_a_file_sighup_is_the_end,
						setup_start_one, setup_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
