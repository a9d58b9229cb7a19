/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/frontend/socket.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* bind() shows in the directory, listen() nowhere: look again this often. */
#define RETRY_MILLISECONDS 5

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

int64_t deadline_in(int milliseconds)
{
	return now() + milliseconds;
}

int deadline_left(int64_t deadline)
{
	int64_t left = deadline - now();

	return left > 0 ? (int)left : 0;
}

int socket_wait(int fd, short events, int64_t deadline)
{
	struct pollfd poll_fd = {.fd = fd, .events = events};
	int n;

	do {
		n = poll(&poll_fd, 1, deadline_left(deadline));
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return n > 0 ? 0 : -ETIMEDOUT;
}

static int fill_address(const char *path, struct sockaddr_un *ret_address)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	*ret_address = address;
	return 0;
}

static int try_connect(const struct sockaddr_un *address, int type)
{
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int error;

	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0)
		return fd;
	error = -errno;
	close(fd);
	return error;
}

/* An inotify fd on the directory of path. */
static int watch_directory(const char *path)
{
	char directory[sizeof(((struct sockaddr_un *)0)->sun_path)];
	const char *slash = strrchr(path, '/');
	int fd, error;

	snprintf(directory, sizeof(directory), "%.*s", slash ? (int)(slash - path) + 1 : 1,
		 slash ? path : ".");
	fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (fd < 0)
		return -errno;
	if (inotify_add_watch(fd, directory, IN_CREATE | IN_MOVED_TO | IN_ATTRIB) >= 0)
		return fd;
	error = -errno;
	close(fd);
	return error;
}

static void drain(int fd)
{
	char events[4096];

	while (read(fd, events, sizeof(events)) > 0)
		;
}

static bool may_come(int result)
{
	return result == -ENOENT || result == -ECONNREFUSED || result == -EAGAIN;
}

int socket_connect(const char *path, int type, int timeout)
{
	int64_t deadline = deadline_in(timeout);
	struct sockaddr_un address;
	int directory, fd;

	fd = fill_address(path, &address);
	if (fd < 0)
		return fd;
	/* Only who has to wait needs a watch: to end one takes the kernel milliseconds. */
	fd = try_connect(&address, type);
	if (!may_come(fd))
		return fd;
	directory = watch_directory(path);
	if (directory < 0)
		return directory;
	for (;;) {
		int left;
		struct pollfd poll_fd = {.fd = directory, .events = POLLIN};

		fd = try_connect(&address, type);
		if (!may_come(fd))
			break;
		left = deadline_left(deadline);
		if (left == 0) {
			fd = -ETIMEDOUT;
			break;
		}
		if (poll(&poll_fd, 1, left < RETRY_MILLISECONDS ? left : RETRY_MILLISECONDS) > 0)
			drain(directory);
	}
	close(directory);
	return fd;
}

int socket_listen(const char *path, int type)
{
	struct sockaddr_un address;
	int fd, error;

	error = fill_address(path, &address);
	if (error < 0)
		return error;
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, 1024) == 0)
		return fd;
	error = -errno;
	close(fd);
	return error;
}

int socket_wait_path(const char *path, int other_fd, int timeout)
{
	int64_t deadline = deadline_in(timeout);
	int directory = watch_directory(path);
	int result = 0;

	if (directory < 0)
		return directory;
	while (access(path, F_OK) < 0) {
		struct pollfd fds[] = {{.fd = directory, .events = POLLIN},
				       {.fd = other_fd, .events = POLLIN}};
		int n = poll(fds, 2, deadline_left(deadline));

		if (n == 0)
			result = -ETIMEDOUT;
		else if (n > 0 && fds[1].revents)
			result = -ECHILD;
		if (result < 0)
			break;
		drain(directory);
	}
	close(directory);
	return result;
}

union fd_message {
	char room[CMSG_SPACE(sizeof(int))];
	struct cmsghdr header;
};

bool socket_pass_fd(int socket, int fd)
{
	union fd_message control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)),
					       .cmsg_level = SOL_SOCKET,
					       .cmsg_type = SCM_RIGHTS}};
	struct iovec part = {(char[]){"x"}, 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control.room,
				 .msg_controllen = sizeof(control.room)};

	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	return sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

int socket_take_fd(int socket)
{
	union fd_message control;
	char byte;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control.room,
				 .msg_controllen = sizeof(control.room)};
	int fd = -1;

	if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == 1 &&
	    message.msg_controllen >= CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
	if (fd >= 0 && recv(socket, &byte, 1, 0) != 0) {
		close(fd);
		return -1;
	}
	return fd;
}
