/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Linked into the real vsockd and vsockd-worker, with the linker's --wrap for each call
 * of plan.h: counts it, and fails the one that the plan names as the kernel would. It
 * makes no system call of its own that the process behind its filter may not make.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/faults/plan.h"

#define FDS_MAX	  4096
#define PARTS_MAX 64

/* A worker that was there before the test's guest came is its neighbour's. */
#define NEIGHBOURS 1u

extern const char __executable_start[];

static struct plan *plan;
static enum plan_role role;
static uint32_t worker_index;

/* How fds are watched: a failure that is told as an edge needs another edge. */
static struct {
	int epoll;
	struct epoll_event event;
} watched[FDS_MAX];

static char *plan_environment[2]; /* for workers: they get none of the spawner's */

#define REAL(type, name, ...)                                                                      \
	type __real_##name(__VA_ARGS__);                                                           \
	type __wrap_##name(__VA_ARGS__);                                                           \
	type __wrap_##name(__VA_ARGS__)

#define SITE ((uint32_t)((uintptr_t)__builtin_return_address(0) - (uintptr_t)__executable_start))

static void attach(const char *path, enum plan_role as)
{
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *pages;

	if (fd < 0)
		return;
	pages = mmap(NULL, sizeof(*plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (pages == MAP_FAILED)
		return;
	role = as;
	plan = pages;
}

__attribute__((constructor)) static void begin(void)
{
	static char entry[PATH_MAX] = PLAN_VARIABLE "=";
	const char *path = getenv(PLAN_VARIABLE);

	if (!path || strlen(path) >= sizeof(entry) - sizeof(PLAN_VARIABLE))
		return;
	strcpy(entry + sizeof(PLAN_VARIABLE), path);
	plan_environment[0] = entry;
#ifdef SHIM_WORKER
	attach(path, ROLE_WORKER);
	if (plan)
		worker_index = atomic_fetch_add(&plan->n_workers, 1);
#else
	attach(path, ROLE_SPAWNER);
#endif
}

static bool is_for_path(enum plan_call call)
{
	return call == CALL_open || call == CALL_flock || call == CALL_lstat || call == CALL_stat ||
	       call == CALL_unlink;
}

/* The lines of a start: the one that says "ready" is what the test waits for. */
static bool is_first_line(uint32_t phase, enum plan_call call)
{
	return phase == PHASE_START && call == CALL_writev && role != ROLE_WORKER;
}

static bool is_counted(uint32_t phase, enum plan_call call)
{
	if (is_first_line(phase, call))
		return false;
	if (phase == PHASE_QUIET || (phase == PHASE_END && is_for_path(call)))
		return false;
	return role != ROLE_WORKER || phase == PHASE_START || worker_index >= NEIGHBOURS;
}

/* The fault that this call is to have, or 0. */
static int fault(enum plan_call call, uint32_t site)
{
	uint32_t phase, nth;

	if (!plan)
		return 0;
	phase = atomic_load(&plan->phase);
	if (!is_counted(phase, call))
		return 0;
	nth = atomic_fetch_add(&plan->counts[role][call], 1) + 1;
	if (nth <= PLAN_SITES_MAX)
		plan->sites[role][call][nth - 1] = site;
	if (plan->nth != nth || plan->role != (uint32_t)role || plan->call != (uint32_t)call)
		return 0;
	atomic_store(&plan->injected_phase, phase);
	atomic_store(&plan->injected_site, site);
	atomic_fetch_add(&plan->n_injected, 1);
	return (int)plan->fault;
}

/* It could not be had here. */
static void withdraw(void)
{
	atomic_fetch_sub(&plan->n_injected, 1);
}

static bool is_fd(int fd)
{
	return fd >= 0 && fd < FDS_MAX;
}

/*
 * EAGAIN: in truth it comes with an event later, when there are bytes or room. All
 * other errors of a socket that are not its last come without: the kernel was short
 * of something.
 */
int __real_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);

static void promise_event(int fd)
{
	if (is_fd(fd) && watched[fd].event.events & EPOLLET)
		(void)__real_epoll_ctl(watched[fd].epoll, EPOLL_CTL_MOD, fd, &watched[fd].event);
}

static ssize_t fail(int fd, int error)
{
	if (error == EAGAIN)
		promise_event(fd);
	errno = error;
	return -1;
}

/* ---- calls that fail or do not ---- */

#define FAILS(type, failed, name, parameters, arguments)                                           \
	type __real_##name parameters;                                                             \
	type __wrap_##name parameters;                                                             \
	type __wrap_##name parameters                                                              \
	{                                                                                          \
		int error = fault(CALL_##name, SITE);                                              \
                                                                                                   \
		if (!error)                                                                        \
			return __real_##name arguments;                                            \
		errno = error;                                                                     \
		return failed;                                                                     \
	}

#define FAILS_AS(type, failed, name, call, parameters, arguments)                                  \
	type __real_##name parameters;                                                             \
	type __wrap_##name parameters;                                                             \
	type __wrap_##name parameters                                                              \
	{                                                                                          \
		int error = fault(CALL_##call, SITE);                                              \
                                                                                                   \
		if (!error)                                                                        \
			return __real_##name arguments;                                            \
		errno = error;                                                                     \
		return failed;                                                                     \
	}

struct stat64;

FAILS(int, -1, bind, (int fd, const struct sockaddr *address, socklen_t len), (fd, address, len))
FAILS(void *, NULL, calloc, (size_t n, size_t size), (n, size))
FAILS(int, -1, chmod, (const char *path, mode_t mode), (path, mode))
FAILS(int, -1, connect, (int fd, const struct sockaddr *address, socklen_t len), (fd, address, len))
FAILS(int, -1, dup3, (int fd, int other, int flags), (fd, other, flags))
FAILS(int, -1, epoll_create1, (int flags), (flags))
FAILS(int, -1, epoll_wait, (int epoll, struct epoll_event *events, int n, int timeout),
      (epoll, events, n, timeout))
FAILS(int, -1, flock, (int fd, int operation), (fd, operation))
FAILS(int, -1, fstat, (int fd, struct stat *ret), (fd, ret))
FAILS_AS(int, -1, fstat64, fstat, (int fd, struct stat64 *ret), (fd, ret))
FAILS(int, -1, ftruncate, (int fd, off_t len), (fd, len))
FAILS_AS(int, -1, ftruncate64, ftruncate, (int fd, int64_t len), (fd, len))
FAILS(ssize_t, -1, getrandom, (void *bytes, size_t len, unsigned int flags), (bytes, len, flags))
FAILS(int, -1, getsockopt, (int fd, int level, int name, void *value, socklen_t *len),
      (fd, level, name, value, len))
FAILS(int, -1, listen, (int fd, int backlog), (fd, backlog))
FAILS(int, -1, lstat, (const char *path, struct stat *ret), (path, ret))
FAILS_AS(int, -1, lstat64, lstat, (const char *path, struct stat64 *ret), (path, ret))
FAILS(int, -1, madvise, (void *address, size_t len, int advice), (address, len, advice))
FAILS(void *, NULL, malloc, (size_t size), (size))
FAILS(int, -1, memfd_create, (const char *name, unsigned int flags), (name, flags))
FAILS(void *, MAP_FAILED, mmap,
      (void *address, size_t len, int protection, int flags, int fd, off_t offset),
      (address, len, protection, flags, fd, offset))
FAILS_AS(void *, MAP_FAILED, mmap64, mmap,
	 (void *address, size_t len, int protection, int flags, int fd, int64_t offset),
	 (address, len, protection, flags, fd, offset))
FAILS(int, -1, munmap, (void *address, size_t len), (address, len))
FAILS(int, -1, poll, (struct pollfd * fds, nfds_t n, int timeout), (fds, n, timeout))
FAILS(int, -1, setsockopt, (int fd, int level, int name, const void *value, socklen_t len),
      (fd, level, name, value, len))
FAILS(int, -1, shutdown, (int fd, int how), (fd, how))
FAILS(int, -1, signalfd, (int fd, const sigset_t *signals, int flags), (fd, signals, flags))
FAILS(int, -1, socket, (int family, int type, int protocol), (family, type, protocol))
FAILS(int, -1, socketpair, (int family, int type, int protocol, int pair[2]),
      (family, type, protocol, pair))
FAILS(int, -1, stat, (const char *path, struct stat *ret), (path, ret))
FAILS_AS(int, -1, stat64, stat, (const char *path, struct stat64 *ret), (path, ret))
FAILS(char *, NULL, strdup, (const char *text), (text))
FAILS_AS(char *, NULL, strndup, strdup, (const char *text, size_t len), (text, len))
FAILS(int, -1, timerfd_create, (int clock, int flags), (clock, flags))
FAILS(int, -1, timerfd_settime,
      (int fd, int flags, const struct itimerspec *time, struct itimerspec *ret),
      (fd, flags, time, ret))
FAILS(int, -1, unlink, (const char *path), (path))
FAILS(int, -1, waitid, (idtype_t type, id_t id, siginfo_t *ret, int options),
      (type, id, ret, options))

/* ---- those with something more to do ---- */

REAL(int, accept4, int fd, struct sockaddr *address, socklen_t *len, int flags)
{
	int error = fault(CALL_accept4, SITE);

	return error ? (int)fail(fd, error) : __real_accept4(fd, address, len, flags);
}

/* Whatever it says, the fd is gone. */
REAL(int, close, int fd)
{
	int error = fault(CALL_close, SITE);
	int result = __real_close(fd);

	if (is_fd(fd))
		watched[fd].event.events = 0;
	return error ? (int)fail(-1, error) : result;
}

REAL(int, epoll_ctl, int epoll, int operation, int fd, struct epoll_event *event)
{
	int error = fault(CALL_epoll_ctl, SITE);

	if (error && operation == EPOLL_CTL_ADD)
		return (int)fail(-1, error);
	/* The kernel has what it needs for the others. */
	if (error)
		withdraw();
	if (is_fd(fd)) {
		watched[fd].epoll = epoll;
		watched[fd].event = (struct epoll_event){0};
		if (operation != EPOLL_CTL_DEL)
			watched[fd].event = *event;
	}
	return __real_epoll_ctl(epoll, operation, fd, event);
}

#define WITH_ARGUMENT(name, call, first_type, type)                                                \
	int __real_##name(first_type first, int second, ...);                                      \
	int __wrap_##name(first_type first, int second, ...);                                      \
	int __wrap_##name(first_type first, int second, ...)                                       \
	{                                                                                          \
		int error = fault(CALL_##call, SITE);                                              \
		va_list arguments;                                                                 \
		type argument;                                                                     \
                                                                                                   \
		va_start(arguments, second);                                                       \
		argument = va_arg(arguments, type);                                                \
		va_end(arguments);                                                                 \
		return error ? (int)fail(-1, error) : __real_##name(first, second, argument);      \
	}

WITH_ARGUMENT(fcntl, fcntl, int, long)
WITH_ARGUMENT(fcntl64, fcntl, int, long)
WITH_ARGUMENT(open, open, const char *, mode_t)
WITH_ARGUMENT(open64, open, const char *, mode_t)

/* What the front is from here on. */
REAL(pid_t, fork, void)
{
	int error = fault(CALL_fork, SITE);
	pid_t pid = error ? (pid_t)fail(-1, error) : __real_fork();

	if (pid == 0)
		role = ROLE_FRONT;
	return pid;
}

/* The others confine, or cannot fail for want of anything. */
static int call_of(long number)
{
	switch (number) {
	case SYS_clone:
		return CALL_clone;
	case SYS_execveat:
		return CALL_execveat;
	case SYS_pidfd_open:
		return CALL_pidfd_open;
	case SYS_statx:
		return CALL_statx;
	default:
		return CALLS;
	}
}

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
	int call = call_of(number), error = call < CALLS ? fault((enum plan_call)call, SITE) : 0;
	va_list list;
	long a[6], result;

	va_start(list, number);
	for (size_t i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (error)
		return fail(-1, error);
	if (number == SYS_execveat && plan_environment[0])
		a[3] = (long)(uintptr_t)plan_environment;
	result = __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (number == SYS_clone && result == 0)
		role = ROLE_STARTER;
	return result;
}

/* ---- time ---- */

/*
 * A day later at each look, as after a clock was set: who counts with it would give up,
 * or wait, for ever. That nobody looks is asserted beside it.
 */
static void jump(struct timespec *time)
{
	static time_t days;

	if (plan)
		atomic_fetch_add(&plan->n_wall_clock, 1);
	time->tv_sec += 86400 * ++days;
}

REAL(int, clock_gettime, clockid_t clock, struct timespec *ret)
{
	int result = __real_clock_gettime(clock, ret);

	if (clock != CLOCK_MONOTONIC && result == 0)
		jump(ret);
	return result;
}

REAL(time_t, time, time_t *ret)
{
	struct timespec now = {.tv_sec = __real_time(NULL)};

	jump(&now);
	if (ret)
		*ret = now.tv_sec;
	return now.tv_sec;
}

REAL(int, gettimeofday, struct timeval *ret, void *zone)
{
	int result = __real_gettimeofday(ret, zone);
	struct timespec now = {.tv_sec = ret->tv_sec};

	jump(&now);
	ret->tv_sec = now.tv_sec;
	return result;
}

/* ---- bytes ---- */

/* No more than a record of the kernel's: these come and go as a whole. */
#define WHOLE_MAX 128

static size_t halve(size_t len)
{
	if (len > WHOLE_MAX)
		return len / 2;
	withdraw();
	return len;
}

/* The first half of what the parts hold. Their number. */
static int halve_parts(const struct iovec *parts, size_t n, struct iovec *ret)
{
	size_t len = 0, used = 0;

	for (size_t i = 0; i < n; i++)
		len += parts[i].iov_len;
	len = halve(len);
	while (used < n && used < PARTS_MAX && len > 0) {
		ret[used] = parts[used];
		if (ret[used].iov_len > len)
			ret[used].iov_len = len;
		len -= ret[used++].iov_len;
	}
	return (int)used;
}

#define MOVES(name, parameters, fd, whole, half)                                                   \
	ssize_t __real_##name parameters;                                                          \
	ssize_t __wrap_##name parameters;                                                          \
	ssize_t __wrap_##name parameters                                                           \
	{                                                                                          \
		int error = fault(CALL_##name, SITE);                                              \
                                                                                                   \
		if (error == FAULT_SHORT)                                                          \
			return __real_##name half;                                                 \
		return error ? fail(fd, error) : __real_##name whole;                              \
	}

MOVES(read, (int fd, void *bytes, size_t len), fd, (fd, bytes, len), (fd, bytes, halve(len)))
MOVES(write, (int fd, const void *bytes, size_t len), fd, (fd, bytes, len), (fd, bytes, halve(len)))
MOVES(recv, (int fd, void *bytes, size_t len, int flags), fd, (fd, bytes, len, flags),
      (fd, bytes, halve(len), flags))
MOVES(send, (int fd, const void *bytes, size_t len, int flags), fd, (fd, bytes, len, flags),
      (fd, bytes, halve(len), flags))
MOVES(recvfrom,
      (int fd, void *bytes, size_t len, int flags, struct sockaddr *address,
       socklen_t *address_len),
      fd, (fd, bytes, len, flags, address, address_len),
      (fd, bytes, len, flags, address, address_len))

ssize_t __real___read_chk(int fd, void *bytes, size_t len, size_t room);
ssize_t __wrap___read_chk(int fd, void *bytes, size_t len, size_t room);
ssize_t __wrap___read_chk(int fd, void *bytes, size_t len, size_t room)
{
	int error = fault(CALL_read, SITE);

	if (error == FAULT_SHORT)
		len = halve(len);
	else if (error)
		return fail(fd, error);
	return __real___read_chk(fd, bytes, len, room);
}

REAL(ssize_t, readv, int fd, const struct iovec *parts, int n)
{
	int error = fault(CALL_readv, SITE);
	struct iovec half[PARTS_MAX];

	if (error == FAULT_SHORT)
		return __real_readv(fd, half, halve_parts(parts, (size_t)n, half));
	return error ? fail(fd, error) : __real_readv(fd, parts, n);
}

/* An eventfd: it takes a signal, or has one already. */
static bool is_signal(const struct iovec *parts, int n)
{
	return n == 1 && parts[0].iov_len == sizeof(uint64_t);
}

REAL(ssize_t, writev, int fd, const struct iovec *parts, int n)
{
	int error = fault(CALL_writev, SITE);
	struct iovec half[PARTS_MAX];

	if (error && is_signal(parts, n)) {
		withdraw();
		return __real_writev(fd, parts, n);
	}
	if (error == FAULT_SHORT)
		return __real_writev(fd, half, halve_parts(parts, (size_t)n, half));
	return error ? fail(fd, error) : __real_writev(fd, parts, n);
}

/* The only fds that front and workers watch so and use these calls on are streams. */
static bool is_stream(int fd)
{
	return is_fd(fd) && watched[fd].event.events & EPOLLET;
}

static void shorten(int fd, struct msghdr *message, struct iovec *first)
{
	if (!is_stream(fd) || message->msg_iov[0].iov_len < 2) {
		withdraw();
		return;
	}
	*first = message->msg_iov[0];
	first->iov_len /= 2;
	message->msg_iov = first;
	message->msg_iovlen = 1;
}

static void drop_fds(struct msghdr *message)
{
	struct cmsghdr *header = CMSG_FIRSTHDR(message);

	if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
		withdraw();
		return;
	}
	for (size_t at = 0; at < header->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
		int fd;

		memcpy(&fd, CMSG_DATA(header) + at, sizeof(fd));
		(void)__real_close(fd);
	}
	message->msg_controllen = 0;
	message->msg_flags |= MSG_CTRUNC;
}

REAL(ssize_t, recvmsg, int fd, struct msghdr *message, int flags)
{
	int error = fault(CALL_recvmsg, SITE);
	struct iovec *parts = message->msg_iov, first;
	size_t n_parts = message->msg_iovlen;
	ssize_t n;

	if (error && error < FAULT_SHORT)
		return fail(fd, error);
	if (error == FAULT_SHORT)
		shorten(fd, message, &first);
	n = __real_recvmsg(fd, message, flags);
	message->msg_iov = parts;
	message->msg_iovlen = n_parts;
	if (error == FAULT_NO_FDS && n > 0)
		drop_fds(message);
	else if (error == FAULT_NO_FDS)
		withdraw();
	return n;
}

REAL(ssize_t, sendmsg, int fd, const struct msghdr *message, int flags)
{
	int error = fault(CALL_sendmsg, SITE);
	struct msghdr shorter = *message;
	struct iovec first;

	if (error == ETOOMANYREFS && message->msg_controllen == 0)
		withdraw(); /* nothing is on its way */
	else if (error && error < FAULT_SHORT)
		return fail(fd, error);
	if (error == FAULT_SHORT)
		shorten(fd, &shorter, &first);
	return __real_sendmsg(fd, &shorter, flags);
}
