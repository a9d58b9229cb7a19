/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/bench/host_program.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_AT_ONCE ((size_t)64 * 1024)
#define EVENTS_MAX   64

/* A writer of small payloads looks for other events only so often. */
#define WRITES_IN_A_ROW	     64
#define WRITE_BYTES_IN_A_ROW ((size_t)64 * 1024)

#define STOP UINT32_MAX

/* Above every index: an accepted fd. */
#define ACCEPTED 0x10000u

static void count(struct host_program *host, size_t index, size_t len)
{
	uint64_t before = atomic_load_explicit(&host->n_received[index], memory_order_relaxed);

	atomic_store_explicit(&host->n_received[index], before + len, memory_order_relaxed);
}

static void read_once(struct host_program *host, size_t index)
{
	ssize_t n = recv(host->fds[index], host->bytes, READ_AT_ONCE, MSG_DONTWAIT);

	if (n > 0)
		count(host, index, (size_t)n);
}

static void write_some(struct host_program *host, size_t index)
{
	size_t len = 0;

	for (int i = 0; i < WRITES_IN_A_ROW && len < WRITE_BYTES_IN_A_ROW; i++) {
		ssize_t n = send(host->fds[index], host->bytes, host->payload,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n <= 0)
			return;
		len += (size_t)n;
	}
}

static void accept_all(struct host_program *host)
{
	int fd;

	while ((fd = accept4(host->fds[0], NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0) {
		struct epoll_event event = {.events = EPOLLIN, .data.u32 = ACCEPTED + (uint32_t)fd};

		if (epoll_ctl(host->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
			close(fd);
	}
}

static void close_if_ended(struct host_program *host, int fd)
{
	ssize_t n = recv(fd, host->bytes, READ_AT_ONCE, 0);

	if (n == 0 || (n < 0 && errno != EAGAIN))
		close(fd);
}

static void handle(struct host_program *host, const struct epoll_event *event)
{
	uint32_t index = event->data.u32;

	if (index >= ACCEPTED) {
		close_if_ended(host, (int)(index - ACCEPTED));
		return;
	}
	if (host->roles & HOST_ACCEPTS) {
		accept_all(host);
		return;
	}
	/* The end of the stream: nothing more to do but wait for the stop. */
	if (event->events & (EPOLLHUP | EPOLLERR))
		epoll_ctl(host->epoll, EPOLL_CTL_DEL, host->fds[index], NULL);
	if (event->events & EPOLLIN)
		read_once(host, index);
	if (event->events & EPOLLOUT)
		write_some(host, index);
}

/* As a plain program would: blocked in recv() until there is something to answer. */
static void *echo(void *context)
{
	struct host_program *host = context;
	ssize_t n;

	while ((n = recv(host->fds[0], host->bytes, READ_AT_ONCE, 0)) > 0) {
		if (send(host->fds[0], host->bytes, (size_t)n, MSG_NOSIGNAL) != n)
			break;
	}
	return NULL;
}

static void *run(void *context)
{
	struct host_program *host = context;
	struct epoll_event events[EVENTS_MAX];

	for (;;) {
		int n = epoll_wait(host->epoll, events, EVENTS_MAX, -1);

		for (int i = 0; i < n; i++) {
			if (events[i].data.u32 == STOP)
				return NULL;
			handle(host, &events[i]);
		}
	}
}

static int watch(struct host_program *host)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = STOP};

	if (epoll_ctl(host->epoll, EPOLL_CTL_ADD, host->stop, &event) < 0)
		return -errno;
	for (size_t i = 0; i < host->n_fds; i++) {
		event.events = (host->roles & (HOST_READS | HOST_ACCEPTS) ? EPOLLIN : 0) |
			       (host->roles & HOST_WRITES ? EPOLLOUT : 0);
		event.data.u32 = (uint32_t)i;
		if (epoll_ctl(host->epoll, EPOLL_CTL_ADD, host->fds[i], &event) < 0)
			return -errno;
	}
	return 0;
}

static void set_blocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags >= 0)
		fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

int host_program_start(struct host_program *host, const int *fds, size_t n_fds, unsigned int roles,
		       size_t payload)
{
	int error = 0;

	memset(host, 0, sizeof(*host));
	host->fds = fds;
	host->n_fds = n_fds;
	host->roles = roles;
	host->payload = payload;
	host->epoll = epoll_create1(EPOLL_CLOEXEC);
	host->stop = eventfd(0, EFD_CLOEXEC);
	host->bytes = calloc(1, READ_AT_ONCE);
	if (host->epoll < 0 || host->stop < 0 || !host->bytes || payload > READ_AT_ONCE)
		error = -ENOMEM;
	if (!error && (roles & HOST_ECHOES))
		set_blocking(fds[0]);
	else if (!error)
		error = watch(host);
	if (!error)
		error = -pthread_create(&host->thread, NULL, roles & HOST_ECHOES ? echo : run,
					host);
	if (!error)
		return 0;
	close(host->epoll);
	close(host->stop);
	free(host->bytes);
	return error;
}

void host_program_stop(struct host_program *host)
{
	uint64_t one = 1;

	if (host->roles & HOST_ECHOES)
		shutdown(host->fds[0], SHUT_RDWR);
	if (write(host->stop, &one, sizeof(one)) == sizeof(one))
		pthread_join(host->thread, NULL);
	close(host->epoll);
	close(host->stop);
	free(host->bytes);
}
