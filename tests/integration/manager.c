/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/integration/manager.h"

#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/socket.h"

#define LIMIT MANAGER_LIMIT

static int bind_datagrams(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (strlen(path) >= sizeof(address.sun_path))
		return -1;
	memcpy(address.sun_path, path, strlen(path));
	return bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 ? fd : -1;
}

int manager_set_up(void **state)
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

int manager_tear_down(void **state)
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

const char *manager_value(const char *message, const char *key, char ret[static 256])
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

	assert_non_null(manager_value(message, "FDNAME", name));
	assert_null(strchr(name, ':'));
	if (manager_value(message, "FDSTOREREMOVE", none)) {
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
	assert_true(manager->n_stored < MANAGER_STORED_MAX);
	memcpy(manager->names[manager->n_stored], name, sizeof(name));
	manager->fds[manager->n_stored++] = fd;
}

bool manager_hear(struct manager *manager, int64_t deadline)
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
	if (manager_value(message, "FDSTORE", none) ||
	    manager_value(message, "FDSTOREREMOVE", none))
		store(manager, message, fd);
	else
		snprintf(manager->last, sizeof(manager->last), "%s", message);
	return true;
}

void manager_await(struct manager *manager, const char *key)
{
	int64_t deadline = deadline_in(LIMIT);
	char none[256];

	do {
		if (!manager_hear(manager, deadline))
			fail_msg("%s does not come, but: %s", key, manager->last);
	} while (!manager_value(manager->last, key, none));
}

void manager_write_file(struct manager *manager, const char *text)
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

void manager_start_with(struct manager *manager, const char *const *arguments)
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

void manager_start(struct manager *manager)
{
	static const char *const with_file[] = {"", "--config", "@/vsockd.yaml", NULL};

	manager_start_with(manager, with_file);
	manager_await(manager, "READY");
}

void manager_end(struct manager *manager)
{
	assert_int_equal(kill(manager->daemon.pid, SIGTERM), 0);
	manager_await(manager, "STOPPING");
	assert_int_equal(daemon_end(&manager->daemon, LIMIT), 0);
}
