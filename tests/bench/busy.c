/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/bench/busy.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "tests/bench/subject.h"
#include "tests/frontend/host.h"

#define N_CONNECTIONS BUSY_CONNECTIONS
#define PAYLOAD	      BUSY_PAYLOAD

/*
 * The bytes of all streams: a row of random ones that repeats, of a length that no
 * buffer has, begun elsewhere by each stream. With a stretch more than that, whatever
 * is sent or received at once lies there in one piece.
 */
#define PERIOD	   131071
#define STRETCH	   ((size_t)64 * 1024)
#define HOST_SENDS ((size_t)16 * 1024)

/* A load of a fixed rate is made of writes of this length, so many at a time. */
#define PACED_LEN PAYLOAD
#define TICK_NS	  250000

/*
 * A load that takes all there is is made out of what vsockd leaves of the processors: what
 * is asked is not how long a scheduler lets one wait among equals.
 */
void busy_give_way(void)
{
	const struct sched_param parameters = {0};

	(void)sched_setscheduler(0, SCHED_IDLE, &parameters);
}

static uint8_t pattern[PERIOD + STRETCH];

static const uint8_t *bytes_at(size_t connection, uint64_t offset)
{
	return pattern + (connection * 1021 + offset) % PERIOD;
}

static void make_pattern(void)
{
	pattern_fill(pattern, PERIOD, 1, 0);
	memcpy(pattern + PERIOD, pattern, STRETCH);
}

static void arrive(struct busy *busy, struct busy_direction *direction, size_t connection,
		   const uint8_t *bytes, size_t len)
{
	double now = subject_now();
	uint64_t gap = (uint64_t)((now - direction->last) * 1e9);
	uint32_t window = atomic_load(&busy->window);

	if (memcmp(bytes, bytes_at(connection, direction->n_received[connection]), len) != 0)
		direction->n_wrong++;
	direction->n_received[connection] += len;
	direction->last = now;
	if (window != direction->window || gap > atomic_load(&direction->longest_ns))
		atomic_store(&direction->longest_ns, gap);
	direction->window = window;
	atomic_fetch_add(&direction->n_arrivals, 1);
}

/* ---- a fixed rate ---- */

/* true for each write that is due; it is made, or is not to be had on that connection now. */
static bool is_due(const struct busy *busy, const struct busy_direction *direction)
{
	double due = (subject_now() - busy->began) * (double)busy->rate;

	return !atomic_load(&busy->is_ending) && (double)direction->n_paced < due;
}

static size_t next_connection(struct busy_direction *direction)
{
	size_t connection = direction->next;

	direction->next = (connection + 1) % N_CONNECTIONS;
	return connection;
}

static void rest(void)
{
	const struct timespec tick = {.tv_nsec = TICK_NS};

	nanosleep(&tick, NULL);
}

/* ---- the host programs ---- */

static void host_reads(struct busy *busy, size_t connection, int fd)
{
	static uint8_t bytes[STRETCH];
	ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);

	if (n > 0)
		arrive(busy, &busy->to_host, connection, bytes, (size_t)n);
}

static void host_writes(struct busy *busy, size_t connection, int fd)
{
	uint64_t *n_sent = &busy->to_guest.n_sent[connection];
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)connection};
	ssize_t n;

	if (atomic_load(&busy->is_ending)) {
		epoll_ctl(busy->epoll, EPOLL_CTL_MOD, fd, &event);
		return;
	}
	n = send(fd, bytes_at(connection, *n_sent), HOST_SENDS, MSG_DONTWAIT | MSG_NOSIGNAL);
	*n_sent += n > 0 ? (uint64_t)n : 0;
}

/* A round at most: who takes nothing now is asked in the next tick. */
static void host_writes_paced(struct busy *busy)
{
	struct busy_direction *direction = &busy->to_guest;

	for (size_t i = 0; i < N_CONNECTIONS && is_due(busy, direction); i++) {
		size_t connection = next_connection(direction);
		uint64_t *n_sent = &direction->n_sent[connection];
		ssize_t n = send(busy->driver->host_fds[connection], bytes_at(connection, *n_sent),
				 PACED_LEN, MSG_DONTWAIT | MSG_NOSIGNAL);

		*n_sent += n > 0 ? (uint64_t)n : 0;
		direction->n_paced += n > 0 ? (uint64_t)n : 0;
	}
	rest();
}

static void *run_host(void *context)
{
	struct busy *busy = context;
	struct epoll_event events[N_CONNECTIONS];
	int timeout = busy->rate > 0 ? 0 : SUBJECT_POLL_MILLISECONDS;

	while (!atomic_load(&busy->is_over)) {
		int n = epoll_wait(busy->epoll, events, N_CONNECTIONS, timeout);

		for (int i = 0; i < n; i++) {
			size_t connection = events[i].data.u32;
			int fd = busy->driver->host_fds[connection];

			if (events[i].events & EPOLLIN)
				host_reads(busy, connection, fd);
			if (events[i].events & EPOLLOUT)
				host_writes(busy, connection, fd);
		}
		if (busy->rate > 0)
			host_writes_paced(busy);
	}
	return NULL;
}

static int start_host(struct busy *busy)
{
	const uint32_t wanted = busy->rate > 0 ? EPOLLIN : (uint32_t)(EPOLLIN | EPOLLOUT);

	busy->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (busy->epoll < 0)
		return -errno;
	for (size_t i = 0; i < N_CONNECTIONS; i++) {
		struct epoll_event event = {.events = wanted, .data.u32 = (uint32_t)i};

		if (epoll_ctl(busy->epoll, EPOLL_CTL_ADD, busy->driver->host_fds[i], &event) < 0)
			return -errno;
	}
	return -pthread_create(&busy->host, NULL, run_host, busy);
}

/* ---- the guest ---- */

struct sink {
	struct busy *busy;
	size_t connection;
};

static void guest_receives(void *context, const uint8_t *bytes, size_t len)
{
	const struct sink *sink = context;

	arrive(sink->busy, &sink->busy->to_guest, sink->connection, bytes, len);
}

/* So many bytes, or negative errno. */
static ssize_t guest_writes(struct busy *busy, size_t connection)
{
	uint64_t *offset = &busy->to_host.n_sent[connection];
	ssize_t n = guest_send(backend_connection(busy->backend, connection),
			       bytes_at(connection, *offset), PAYLOAD);

	if (n < 0)
		return n == -EAGAIN ? 0 : n;
	*offset += (uint64_t)n;
	return n;
}

static int guest_turn_paced(struct busy *busy)
{
	struct busy_direction *direction = &busy->to_host;
	int n_polled;

	for (size_t i = 0; i < N_CONNECTIONS && is_due(busy, direction); i++) {
		ssize_t n = guest_writes(busy, next_connection(direction));

		if (n < 0)
			return (int)n;
		direction->n_paced += (uint64_t)n;
	}
	n_polled = busy->driver->poll(busy->driver, 0);
	rest();
	return n_polled;
}

int busy_turn(struct busy *busy)
{
	size_t n_sent = 0;

	if (busy->rate > 0)
		return guest_turn_paced(busy);
	for (size_t i = 0; !atomic_load(&busy->is_ending) && i < N_CONNECTIONS; i++) {
		ssize_t n = guest_writes(busy, i);

		if (n < 0)
			return (int)n;
		n_sent += n > 0;
	}
	return busy->driver->poll(busy->driver, n_sent > 0 ? 0 : SUBJECT_POLL_MILLISECONDS);
}

uint64_t busy_lost(const struct busy_direction *direction)
{
	uint64_t n = 0;

	for (size_t i = 0; i < N_CONNECTIONS; i++)
		n += direction->n_sent[i] - direction->n_received[i];
	return n;
}

uint64_t busy_arrived(const struct busy_direction *direction)
{
	uint64_t n = 0;

	for (size_t i = 0; i < N_CONNECTIONS; i++)
		n += direction->n_received[i];
	return n;
}

int busy_start(struct busy *busy)
{
	static struct sink sinks[N_CONNECTIONS];

	make_pattern();
	for (size_t i = 0; i < N_CONNECTIONS; i++) {
		struct guest_connection *connection = backend_connection(busy->backend, i);

		sinks[i] = (struct sink){busy, i};
		connection->sink = guest_receives;
		connection->sink_context = &sinks[i];
	}
	busy->began = busy->to_host.last = busy->to_guest.last = subject_now();
	return start_host(busy);
}

void busy_stop(struct busy *busy)
{
	atomic_store(&busy->is_over, true);
	pthread_join(busy->host, NULL);
	close(busy->epoll);
}
