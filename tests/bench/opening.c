/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/bench/host_program.h"
#include "tests/bench/measure.h"
#include "tests/bench/subject.h"
#include "tests/frontend/socket.h"

#define OPEN_MAX 4096

struct opened {
	struct guest_connection *connections[OPEN_MAX];
	size_t n;
	enum guest_state until; /* all of them are in this state, or have ended */
};

static bool has_settled(void *context)
{
	const struct opened *opened = context;

	for (size_t i = 0; i < opened->n; i++) {
		enum guest_state state = opened->connections[i]->state;

		if (state != opened->until && state != GUEST_CLOSED)
			return false;
	}
	return true;
}

struct moment {
	double time;
	struct processes_usage usage;
};

static struct moment take_moment(const struct subject *subject)
{
	struct moment moment = {.time = subject_now()};

	processes_usage(subject->driver->pid, &moment.usage);
	return moment;
}

static void count_since(const struct subject *subject, const struct moment *begin, size_t n,
			struct opening_figures *ret)
{
	struct moment end = take_moment(subject);

	*ret = (struct opening_figures){
		.per_second = (double)n / (end.time - begin->time),
		.cpu_microseconds =
			1e6 * (end.usage.cpu_seconds - begin->usage.cpu_seconds) / (double)n,
		.switches = (double)(end.usage.n_switches - begin->usage.n_switches) / (double)n,
	};
}

static int open_and_close(struct guest *guest, size_t n_at_once, struct opened *opened)
{
	int error;

	for (opened->n = 0; opened->n < n_at_once; opened->n++) {
		opened->connections[opened->n] =
			guest_connect(guest, PACKET_HOST_CID, BACKEND_PORT);
		if (!opened->connections[opened->n])
			return -ENOMEM;
	}
	opened->until = GUEST_ESTABLISHED;
	error = guest_wait_until(guest, has_settled, opened, BACKEND_TIMEOUT);
	for (size_t i = 0; !error && i < opened->n; i++) {
		if (opened->connections[i]->state != GUEST_ESTABLISHED)
			return -ECONNREFUSED;
		error = guest_close(opened->connections[i]);
	}
	opened->until = GUEST_CLOSED;
	if (!error)
		error = guest_wait_until(guest, has_settled, opened, BACKEND_TIMEOUT);
	for (size_t i = 0; !error && i < opened->n; i++)
		guest_forget(opened->connections[i]);
	return error;
}

static int run_opening_by_guest(struct subject *subject, size_t n_at_once, int duration,
				struct opening_figures *ret)
{
	static struct host_program host;
	static struct opened opened;
	int listener = backend_listener(subject->backend);
	int error = host_program_start(&host, &listener, 1, HOST_ACCEPTS, 1);
	struct moment begin = take_moment(subject);
	double end = begin.time + duration / 1e3;
	size_t n = 0;

	if (error)
		return error;
	while (!error && subject_now() < end) {
		error = open_and_close(backend_guest(subject->backend), n_at_once, &opened);
		n += n_at_once;
	}
	if (!error)
		count_since(subject, &begin, n, ret);
	host_program_stop(&host);
	return error;
}

/* A host program that connects and closes, so many at a time. */
struct opener {
	const char *uds_path;
	size_t n_at_once;
	_Atomic bool is_stopped, is_done;
	_Atomic int error;
	_Atomic size_t n;
};

/* As host_connect(), which watches the directory first: that takes longer than all the rest. */
static int connect_at_once(const char *uds_path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char line[32];
	int len = snprintf(line, sizeof(line), "CONNECT %u\n", BACKEND_PORT);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int error;

	if (fd < 0)
		return -errno;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", uds_path);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 &&
	    send(fd, line, (size_t)len, MSG_NOSIGNAL) == len)
		return fd;
	error = -errno;
	close(fd);
	return error;
}

/* "OK port\n" comes in one piece from everybody. */
static int read_answer(int fd)
{
	char answer[32];
	int error = socket_wait(fd, POLLIN, deadline_in(BACKEND_TIMEOUT));
	ssize_t n;

	if (error)
		return error;
	n = recv(fd, answer, sizeof(answer), 0);
	if (n < 0)
		return -errno;
	return n > 3 && memcmp(answer, "OK ", 3) == 0 ? 0 : -ECONNRESET;
}

static void *open_from_host(void *context)
{
	struct opener *opener = context;
	int fds[OPEN_MAX];

	while (!opener->is_stopped && !opener->error) {
		for (size_t i = 0; i < opener->n_at_once; i++)
			fds[i] = connect_at_once(opener->uds_path);
		for (size_t i = 0; i < opener->n_at_once; i++) {
			int error = fds[i] < 0 ? fds[i] : read_answer(fds[i]);

			if (error)
				opener->error = error;
			else
				opener->n++;
			if (fds[i] >= 0)
				close(fds[i]);
		}
	}
	opener->is_done = true;
	return NULL;
}

/* Keep what was accepted until the host program has closed it. */
static int serve_accepted(struct guest *guest, struct opened *opened)
{
	struct guest_connection *connection;
	int n = guest_poll(guest, SUBJECT_POLL_MILLISECONDS);

	while (opened->n < OPEN_MAX && (connection = guest_accept(guest, BACKEND_PORT)))
		opened->connections[opened->n++] = connection;
	for (size_t i = opened->n; i > 0; i--) {
		if (opened->connections[i - 1]->state != GUEST_CLOSED)
			continue;
		guest_forget(opened->connections[i - 1]);
		opened->connections[i - 1] = opened->connections[--opened->n];
	}
	return n;
}

static int run_opening_by_host(struct subject *subject, size_t n_at_once, int duration,
			       struct opening_figures *ret)
{
	static struct opened opened;
	struct guest *guest = backend_guest(subject->backend);
	struct opener opener = {.uds_path = backend_uds_path(subject->backend),
				.n_at_once = n_at_once};
	struct moment begin = take_moment(subject);
	double end = begin.time + duration / 1e3;
	pthread_t thread;
	int error = guest_listen(guest, BACKEND_PORT), n = 0;

	opened.n = 0;
	if (!error)
		error = -pthread_create(&thread, NULL, open_from_host, &opener);
	if (error)
		return error;
	while (n >= 0 && subject_now() < end)
		n = serve_accepted(guest, &opened);
	if (opener.n > 0)
		count_since(subject, &begin, opener.n, ret);
	else
		error = -ETIMEDOUT;
	opener.is_stopped = true;
	/* The last of them want their answers. */
	end = subject_now() + SUBJECT_STUCK_SECONDS;
	while (n >= 0 && !opener.is_done && subject_now() < end)
		n = serve_accepted(guest, &opened);
	pthread_join(thread, NULL);
	if (n < 0)
		return n;
	return error ? error : opener.error;
}

int measure_opening(const struct candidate *candidate, bool is_by_guest, size_t n_at_once,
		    int duration, struct opening_figures *ret)
{
	struct subject subject;
	/* One that stays: without it a host program may come before the rings are started. */
	int error = subject_start(candidate, 1, 1, &subject);

	if (error)
		return error;
	if (is_by_guest)
		error = run_opening_by_guest(&subject, n_at_once, duration, ret);
	else
		error = run_opening_by_host(&subject, n_at_once, duration, ret);
	subject_stop(&subject);
	return error ? subject_fail(candidate, "opening", error) : 0;
}
