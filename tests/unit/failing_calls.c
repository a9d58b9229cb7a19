/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/failing_calls.h"

#include <errno.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static struct {
	enum failing_call call;
	int fd;
	uint32_t n_left; /* 0: none fails */
	int error;
} plan;

void failing_call_plan(enum failing_call call, int fd, uint32_t nth, int error)
{
	plan.call = call;
	plan.fd = fd;
	plan.n_left = nth;
	plan.error = error;
}

bool failing_call_has_come(void)
{
	bool has_come = plan.n_left == 0;

	plan.n_left = 0;
	return has_come;
}

static bool fails(enum failing_call call, int fd)
{
	if (plan.n_left == 0 || plan.call != call || (plan.fd >= 0 && plan.fd != fd))
		return false;
	return --plan.n_left == 0;
}

/* What such a call returns. */
static int failure(void)
{
	if (plan.error == 0)
		return 0;
	errno = plan.error;
	return -1;
}

#define WRAP(type, name, CALL, fd, parameters, arguments)                                          \
	type __real_##name parameters;                                                             \
	type __wrap_##name parameters;                                                             \
	type __wrap_##name parameters                                                              \
	{                                                                                          \
		return fails(CALL, fd) ? failure() : __real_##name arguments;                      \
	}

WRAP(int, epoll_ctl, CALL_EPOLL_CTL, watched,
     (int epoll, int operation, int watched, struct epoll_event *event),
     (epoll, operation, watched, event))
WRAP(int, memfd_create, CALL_MEMFD_CREATE, -1, (const char *name, unsigned int flags),
     (name, flags))
WRAP(ssize_t, readv, CALL_READV, fd, (int fd, const struct iovec *parts, int n), (fd, parts, n))
WRAP(ssize_t, writev, CALL_WRITEV, fd, (int fd, const struct iovec *parts, int n), (fd, parts, n))
WRAP(ssize_t, recvfrom, CALL_RECVFROM, fd,
     (int fd, void *bytes, size_t len, int flags, struct sockaddr *address, socklen_t *address_len),
     (fd, bytes, len, flags, address, address_len))
WRAP(ssize_t, recvmsg, CALL_RECVMSG, fd, (int fd, struct msghdr *message, int flags),
     (fd, message, flags))
WRAP(ssize_t, sendmsg, CALL_SENDMSG, fd, (int fd, const struct msghdr *message, int flags),
     (fd, message, flags))

/* Both names: for files beyond 2 GiB there is another one. */
WRAP(int, ftruncate, CALL_FTRUNCATE, fd, (int fd, off_t len), (fd, len))
WRAP(int, ftruncate64, CALL_FTRUNCATE, fd, (int fd, off64_t len), (fd, len))

#define WRAP_FCNTL(name)                                                                           \
	int __real_##name(int fd, int command, ...);                                               \
	int __wrap_##name(int fd, int command, ...);                                               \
	int __wrap_##name(int fd, int command, ...)                                                \
	{                                                                                          \
		va_list arguments;                                                                 \
		long argument;                                                                     \
                                                                                                   \
		va_start(arguments, command);                                                      \
		argument = va_arg(arguments, long);                                                \
		va_end(arguments);                                                                 \
		return fails(CALL_FCNTL, fd) ? failure() : __real_##name(fd, command, argument);   \
	}

WRAP_FCNTL(fcntl)
WRAP_FCNTL(fcntl64)
