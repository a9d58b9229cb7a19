/* SPDX-License-Identifier: Apache-2.0 */

/*
 * vsockd as a service. This program plays systemd: it hears what vsockd tells, keeps
 * the sockets of the fd store, and passes them on to the next vsockd.
 */

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
#include <sys/un.h>
#include <sysexits.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/daemon.h"
#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"

#define LIMIT	   20000
#define STORED_MAX 16

struct manager {
	struct daemon daemon;
	struct daemon_service service;
	struct guest guest;
	bool has_guest;
	int notify; /* the socket */
	char notify_path[128];
	size_t n_stored;
	int fds[STORED_MAX];
	char names[STORED_MAX][256];
	char all_names[STORED_MAX * 256];
	char last[512]; /* message that brought no socket */
};

/* ---- systemd's part ---- */

static int bind_datagrams(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (strlen(path) >= sizeof(address.sun_path))
		return -1;
	memcpy(address.sun_path, path, strlen(path));
	return bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 ? fd : -1;
}

static int make_manager(void **state)
{
	struct manager *manager = calloc(1, sizeof(*manager));

	*state = manager;
	if (!manager || daemon_prepare(&manager->daemon))
		return -1;
	snprintf(manager->notify_path, sizeof(manager->notify_path), "%s",
		 daemon_path(&manager->daemon, "notify"));
	manager->notify = bind_datagrams(manager->notify_path);
	manager->service.notify = manager->notify_path;
	manager->daemon.service = &manager->service;
	return manager->notify >= 0 ? 0 : -1;
}

static int end_manager(void **state)
{
	struct manager *manager = *state;
	int result;

	if (manager->has_guest)
		guest_end(&manager->guest);
	for (size_t i = 0; i < manager->n_stored; i++)
		close(manager->fds[i]);
	result = daemon_stop(&manager->daemon, LIMIT);
	close(manager->notify);
	free(manager);
	return result;
}

static void forget_stored(struct manager *manager, size_t i)
{
	close(manager->fds[i]);
	manager->n_stored--;
	manager->fds[i] = manager->fds[manager->n_stored];
	memmove(manager->names[i], manager->names[manager->n_stored], sizeof(manager->names[i]));
}

/* The value of a line "KEY=value", or NULL. */
static const char *value_of(const char *message, const char *key, char ret[static 256])
{
	const char *at = message;
	size_t len = strlen(key);

	while (at && (strncmp(at, key, len) != 0 || at[len] != '=')) {
		at = strchr(at, '\n');
		at = at ? at + 1 : NULL;
	}
	if (!at)
		return NULL;
	snprintf(ret, 256, "%.*s", (int)strcspn(at + len + 1, "\n"), at + len + 1);
	return ret;
}

static void store(struct manager *manager, const char *message, int fd)
{
	char name[256], none[256];

	assert_non_null(value_of(message, "FDNAME", name));
	assert_null(strchr(name, ':'));
	if (value_of(message, "FDSTOREREMOVE", none)) {
		for (size_t i = 0; i < manager->n_stored; i++)
			if (strcmp(manager->names[i], name) == 0)
				forget_stored(manager, i);
		return;
	}
	assert_true(fd >= 0);
	for (size_t i = 0; i < manager->n_stored; i++) {
		/* The same socket once more is the same entry. */
		if (strcmp(manager->names[i], name) != 0)
			continue;
		close(fd);
		return;
	}
	assert_true(manager->n_stored < STORED_MAX);
	memcpy(manager->names[manager->n_stored], name, sizeof(name));
	manager->fds[manager->n_stored++] = fd;
}

/* One message. false: none came in time. */
static bool hear(struct manager *manager, int64_t deadline)
{
	char message[1024] = "", none[256], room[CMSG_SPACE(sizeof(int))];
	struct iovec part = {message, sizeof(message) - 1};
	struct msghdr header = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = room,
		.msg_controllen = sizeof(room),
	};
	struct cmsghdr *cmsg;
	int fd = -1;

	if (socket_wait(manager->notify, POLLIN, deadline) < 0)
		return false;
	assert_true(recvmsg(manager->notify, &header, MSG_CMSG_CLOEXEC) > 0);
	cmsg = CMSG_FIRSTHDR(&header);
	if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
	if (value_of(message, "FDSTORE", none) || value_of(message, "FDSTOREREMOVE", none))
		store(manager, message, fd);
	else
		snprintf(manager->last, sizeof(manager->last), "%s", message);
	return true;
}

static void await(struct manager *manager, const char *key)
{
	int64_t deadline = deadline_in(LIMIT);
	char none[256];

	do {
		if (!hear(manager, deadline))
			fail_msg("%s does not come, but: %s", key, manager->last);
	} while (!value_of(manager->last, key, none));
}

static void write_file(struct manager *manager, const char *text)
{
	FILE *file = fopen(daemon_path(&manager->daemon, "vsockd.yaml"), "w");

	assert_non_null(file);
	for (; *text; text++) {
		if (*text == '@')
			fputs(manager->daemon.directory, file);
		else
			fputc(*text, file);
	}
	assert_int_equal(fclose(file), 0);
}

/* With what is in the store. */
static void start_with(struct manager *manager, const char *const *arguments)
{
	manager->all_names[0] = '\0';
	for (size_t i = 0; i < manager->n_stored; i++) {
		strcat(manager->all_names, i ? ":" : "");
		strcat(manager->all_names, manager->names[i]);
	}
	manager->service.fds = manager->fds;
	manager->service.n_fds = manager->n_stored;
	manager->service.names = manager->all_names;
	assert_int_equal(daemon_start(&manager->daemon, arguments, NULL, LIMIT), 0);
}

static const char *const with_file[] = {"", "--config", "@/vsockd.yaml", NULL};

static void start(struct manager *manager)
{
	start_with(manager, with_file);
	await(manager, "READY");
}

static void end(struct manager *manager)
{
	assert_int_equal(kill(manager->daemon.pid, SIGTERM), 0);
	await(manager, "STOPPING");
	assert_int_equal(daemon_end(&manager->daemon, LIMIT), 0);
}

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

	write_file(manager, ONE_VM);
	start(manager);
	assert_string_equal(value_of(manager->last, "STATUS", value), "1 VM");
	assert_true(is_there(manager, "vm"));

	write_file(manager, "vms: [{socket: @/vm, uds-path: @/host},"
			    "{guest-cid: 4, socket: @/vm4, uds-path: @/host4}]\n");
	assert_int_equal(kill(manager->daemon.pid, SIGHUP), 0);
	await(manager, "RELOADING");
	assert_non_null(value_of(manager->last, "MONOTONIC_USEC", value));
	await(manager, "READY");
	assert_string_equal(value_of(manager->last, "STATUS", value), "2 VMs");

	write_file(manager, "vms: [\n");
	assert_int_equal(kill(manager->daemon.pid, SIGHUP), 0);
	await(manager, "RELOADING");
	await(manager, "READY");
	assert_string_equal(value_of(manager->last, "STATUS", value),
			    "the last reload was refused, see the log");
	end(manager);
}

static void test_sockets_are_kept_and_come_back(void **state)
{
	struct manager *manager = *state;
	ino_t vm, host;

	write_file(manager, ONE_VM "control: @/control\nmetrics: @/metrics\n");
	start(manager);
	assert_int_equal(manager->n_stored, 5);
	vm = inode_of(manager, "vm");
	host = inode_of(manager, "host");
	for (int i = 0; i < 3; i++) {
		end(manager);
		start(manager);
		assert_int_equal(inode_of(manager, "vm"), vm);
		assert_int_equal(inode_of(manager, "host"), host);
		assert_int_equal(manager->n_stored, 5);
		assert_false(daemon_log_has(&manager->daemon, "belongs to no VM"));
		start_guest(manager);
		end_guest(manager);
	}
	end(manager);
}

static void test_who_connects_during_a_restart_waits_and_is_served(void **state)
{
	struct manager *manager = *state;
	struct guest *guest;
	int before, between;

	write_file(manager, ONE_VM);
	start(manager);
	guest = start_guest(manager);
	assert_int_equal(guest_listen(guest, 7), 0);
	before = host_connect(daemon_path(&manager->daemon, "host"), 7, LIMIT);
	assert_true(before >= 0);
	expect_answer(manager, before);

	end(manager);
	end_guest(manager);
	/* Nobody is there but the sockets. */
	between = host_connect(daemon_path(&manager->daemon, "host"), 7, LIMIT);
	assert_true(between >= 0);
	start(manager);
	assert_int_equal(socket_wait(between, POLLIN, deadline_in(200)), -ETIMEDOUT);
	guest = start_guest(manager);
	assert_int_equal(guest_listen(guest, 7), 0);
	expect_answer(manager, between);
	end_guest(manager);

	/* A front-end may come first, too: its messages wait. */
	end(manager);
	between = socket_connect(daemon_path(&manager->daemon, "vm"), SOCK_STREAM, LIMIT);
	assert_true(between >= 0);
	start(manager);
	assert_int_equal(daemon_wait_log(&manager->daemon, "front-end connected", LIMIT), 0);
	close(between);
	start_guest(manager);
	end_guest(manager);
	end(manager);
}

static void test_a_socket_whose_file_was_replaced_is_made_anew(void **state)
{
	struct manager *manager = *state;
	ino_t before;
	int other;

	write_file(manager, ONE_VM);
	start(manager);
	before = inode_of(manager, "host");
	end(manager);
	/* Another program took the place, and left. */
	assert_int_equal(unlink(daemon_path(&manager->daemon, "host")), 0);
	other = socket_listen(daemon_path(&manager->daemon, "host"), SOCK_STREAM);
	assert_true(other >= 0);
	close(other);
	start(manager);
	assert_true(daemon_log_has(&manager->daemon, "not the one that was passed"));
	assert_int_not_equal(inode_of(manager, "host"), before);
	assert_int_equal(guest_listen(start_guest(manager), 7), 0);
	expect_answer(manager, host_connect(daemon_path(&manager->daemon, "host"), 7, LIMIT));
	/* The old one is not kept any longer. */
	assert_int_equal(manager->n_stored, 3);
	end(manager);
}

static void test_sockets_of_an_activator_are_used_and_left(void **state)
{
	struct manager *manager = *state;
	struct stat found;
	ino_t before;

	manager->fds[0] = socket_listen(daemon_path(&manager->daemon, "host"), SOCK_STREAM);
	manager->fds[1] = socket_listen(daemon_path(&manager->daemon, "vm"), SOCK_STREAM);
	snprintf(manager->names[0], sizeof(manager->names[0]), "vsockd.socket");
	snprintf(manager->names[1], sizeof(manager->names[1]), "vsockd.socket");
	manager->n_stored = 2;
	assert_int_equal(chmod(daemon_path(&manager->daemon, "host"), 0642), 0);
	before = inode_of(manager, "host");
	write_file(manager, ONE_VM);
	start(manager);
	assert_int_equal(guest_listen(start_guest(manager), 7), 0);
	expect_answer(manager, host_connect(daemon_path(&manager->daemon, "host"), 7, LIMIT));
	end_guest(manager);
	end(manager);
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
	write_file(manager, ONE_VM);
	start(manager);
	assert_int_equal(socket_wait(host, POLLIN, deadline_in(200)), -ETIMEDOUT);
	guest = start_guest(manager);
	assert_int_equal(guest_listen(guest, 7), 0);
	expect_answer(manager, host);
	end_guest(manager);
	end(manager);
}

static void test_a_socket_named_by_its_number_is_left_to_who_named_it(void **state)
{
	static const char *const arguments[] = {"", "--fd", "3", "--uds-path", "@/host", NULL};
	struct manager *manager = *state;

	manager->fds[0] = socket_listen(daemon_path(&manager->daemon, "vm"), SOCK_STREAM);
	snprintf(manager->names[0], sizeof(manager->names[0]), "vsockd.socket");
	manager->n_stored = 1;
	start_with(manager, arguments);
	await(manager, "READY");
	assert_int_equal(guest_listen(start_guest(manager), 7), 0);
	expect_answer(manager, host_connect(daemon_path(&manager->daemon, "host"), 7, LIMIT));
	end_guest(manager);
	assert_false(daemon_log_has(&manager->daemon, "belongs to no VM"));
	end(manager);
}

static void test_a_start_that_fails_leaves_what_is_kept(void **state)
{
	struct manager *manager = *state;
	ino_t host;
	int other;

	write_file(manager, ONE_VM);
	start(manager);
	host = inode_of(manager, "host");
	end(manager);
	/* One socket of the next start cannot be made. */
	other = socket_listen(daemon_path(&manager->daemon, "taken"), SOCK_STREAM);
	assert_true(other >= 0);
	write_file(manager, ONE_VM "control: @/new\nmetrics: @/taken\n");
	start_with(manager, with_file);
	assert_int_equal(daemon_wait_log(&manager->daemon, "another program listens on it", LIMIT),
			 0);
	assert_int_equal(daemon_end(&manager->daemon, LIMIT), EX_CANTCREAT);
	assert_false(hear(manager, 0));
	assert_false(is_there(manager, "new"));
	assert_int_equal(inode_of(manager, "host"), host);
	close(other);
	start(manager);
	assert_int_equal(inode_of(manager, "host"), host);
	end(manager);
}

static void test_a_reload_moves_what_is_kept(void **state)
{
	struct manager *manager = *state;

	write_file(manager, ONE_VM);
	start(manager);
	assert_int_equal(manager->n_stored, 3);
	write_file(manager, "vms: [{socket: @/vm, uds-path: @/else, listen: ['5:unix:@/five']}]\n");
	assert_int_equal(kill(manager->daemon.pid, SIGHUP), 0);
	await(manager, "RELOADING");
	await(manager, "READY");
	assert_int_equal(manager->n_stored, 4);
	for (size_t i = 0; i < manager->n_stored; i++)
		assert_null(strstr(manager->names[i], "/host"));
	end(manager);
	/* A VM less in the file of the next start. */
	write_file(manager, "vms: [{guest-cid: 8, socket: @/vm, uds-path: @/else}]\n");
	start(manager);
	assert_true(daemon_log_has(&manager->daemon, "belongs to no VM and is closed"));
	while (manager->n_stored > 3 && hear(manager, deadline_in(LIMIT)))
		;
	assert_int_equal(manager->n_stored, 3);
	end(manager);
}

static void test_the_watchdog_hears_of_both_loops(void **state)
{
	struct manager *manager = *state;
	pid_t pids[DAEMON_PIDS_MAX];

	manager->service.watchdog = "150000";
	write_file(manager, ONE_VM);
	start(manager);
	for (int i = 0; i < 3; i++) {
		manager->last[0] = '\0';
		await(manager, "WATCHDOG");
	}
	/* A front that hangs is not covered by a spawner that lives. */
	assert_true(daemon_find(&manager->daemon, "vsockd", pids) >= 1);
	assert_int_equal(kill(pids[0], SIGSTOP), 0);
	while (hear(manager, deadline_in(50)))
		;
	assert_false(hear(manager, deadline_in(600)));
	assert_int_equal(kill(pids[0], SIGCONT), 0);
	await(manager, "WATCHDOG");
	end(manager);
}

#define WITH_MANAGER(test) cmocka_unit_test_setup_teardown(test, make_manager, end_manager)

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
