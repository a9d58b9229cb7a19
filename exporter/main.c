/* SPDX-License-Identifier: Apache-2.0 */

/*
 * vsockd-exporter: answers HTTP with metrics. Started by the spawner with a channel to
 * the front as fd 3 and a listening TCP socket as fd 4. The parser of HTTP is that of
 * libmicrohttpd, and this process is there so that it has nothing but those two:
 * everything is prepared, then it confines itself, and only then looks at a client.
 *
 * A client has one request, IDLE_S seconds without a byte, and CLIENT_MS in all;
 * further ones than CLIENTS_MAX wait in the backlog.
 */

#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "exporter/answer.h"
#include "policy/policy.h"

#define CLIENTS_MAX 128
#define IDLE_S	    5u
#define CLIENT_MS   10000
#define REQUEST_MAX 4096u
/* Fixed ones, those of clients, and one that is accepted while it is told that there is no room. */
#define FILES_MAX (POLICY_EXPORTER_FD_MAX + 1 + CLIENTS_MAX + 4)
/*
 * The library has a heap, and behind the walls no call would make it larger. A client
 * takes REQUEST_MAX and less than 2 KiB for itself; this is more than twice that.
 */
#define HEAP_SIZE (2u << 20)

struct client {
	struct MHD_Connection *connection; /* NULL: this entry is free */
	uint64_t until;			   /* ms */
};

static struct client clients[CLIENTS_MAX];

/*
 * Sanitizer builds only: an answer to the run-time's question. Leaks cannot be looked
 * for from inside an empty root.
 */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0";
}

static uint64_t now_ms(void)
{
	struct timespec now = {0};

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- clients, by their time ---- */

static void on_client(void *unused, struct MHD_Connection *connection, void **context,
		      enum MHD_ConnectionNotificationCode what)
{
	bool has_begun = what == MHD_CONNECTION_NOTIFY_STARTED;

	(void)unused;
	(void)context;
	for (size_t i = 0; i < CLIENTS_MAX; i++) {
		if (clients[i].connection != (has_begun ? NULL : connection))
			continue;
		clients[i].connection = has_begun ? connection : NULL;
		clients[i].until = now_ms() + CLIENT_MS;
		return;
	}
}

/* The library gives who reads or writes a byte now and then all the time there is. */
static void end_late(uint64_t now)
{
	for (size_t i = 0; i < CLIENTS_MAX; i++) {
		const union MHD_ConnectionInfo *info;

		if (!clients[i].connection || clients[i].until > now)
			continue;
		clients[i].until = UINT64_MAX;
		info = MHD_get_connection_info(clients[i].connection,
					       MHD_CONNECTION_INFO_CONNECTION_FD);
		if (info)
			(void)shutdown(info->connect_fd, SHUT_RDWR);
	}
}

static uint64_t next_late(void)
{
	uint64_t next = UINT64_MAX;

	for (size_t i = 0; i < CLIENTS_MAX; i++)
		if (clients[i].connection && clients[i].until < next)
			next = clients[i].until;
	return next;
}

/* ---- requests ---- */

static enum MHD_Result on_request(void *unused, struct MHD_Connection *connection, const char *url,
				  const char *method, const char *version, const char *body,
				  size_t *body_len, void **context)
{
	unsigned int status = MHD_HTTP_OK;
	struct MHD_Response *response;

	(void)unused;
	(void)version;
	(void)body;
	(void)body_len;
	(void)context;
	if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
		status = MHD_HTTP_METHOD_NOT_ALLOWED;
		response = answer_not_allowed();
	} else if (strcmp(url, "/metrics") != 0) {
		status = MHD_HTTP_NOT_FOUND;
		response = answer_not_found();
	} else {
		response = answer_metrics(&status);
	}
	return MHD_queue_response(connection, status, response);
}

/* ---- the process ---- */

static void on_panic(void *unused, const char *file, unsigned int line, const char *reason)
{
	(void)unused;
	(void)file;
	(void)line;
	(void)reason;
	__builtin_trap();
}

static bool reserve_heap(void)
{
	void *heap;

	/* All of it in one piece, and never given back. */
	(void)mallopt(M_MMAP_MAX, 0);
	(void)mallopt(M_TRIM_THRESHOLD, INT32_MAX);
	heap = malloc(HEAP_SIZE);
	free(heap);
	return heap != NULL;
}

static struct MHD_Daemon *prepare(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	const union MHD_DaemonInfo *info;
	struct MHD_Daemon *http;

	if (epoll_create1(EPOLL_CLOEXEC) != POLICY_EXPORTER_EPOLL_FD || !reserve_heap() ||
	    !answer_init(POLICY_WORKER_CHANNEL_FD))
		return NULL;
	MHD_set_panic_func(on_panic, NULL);
	http = MHD_start_daemon(MHD_USE_EPOLL | MHD_USE_SUPPRESS_DATE_NO_CLOCK, 0, NULL, NULL,
				on_request, NULL, MHD_OPTION_LISTEN_SOCKET,
				POLICY_EXPORTER_LISTENER_FD, MHD_OPTION_CONNECTION_LIMIT,
				(unsigned int)CLIENTS_MAX, MHD_OPTION_CONNECTION_TIMEOUT, IDLE_S,
				MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)REQUEST_MAX,
				MHD_OPTION_NOTIFY_CONNECTION, on_client, NULL, MHD_OPTION_END);
	info = http ? MHD_get_daemon_info(http, MHD_DAEMON_INFO_EPOLL_FD) : NULL;
	/* Only fixed fds stay open. */
	if (!info || info->epoll_fd != POLICY_EXPORTER_FD_MAX ||
	    epoll_ctl(POLICY_EXPORTER_EPOLL_FD, EPOLL_CTL_ADD, info->epoll_fd, &event))
		return NULL;
	return http;
}

static int timeout(struct MHD_Daemon *http, uint64_t now)
{
	MHD_UNSIGNED_LONG_LONG of_library = 0;
	uint64_t late = next_late(), wait = UINT64_MAX;

	if (late != UINT64_MAX)
		wait = late > now ? late - now : 0;
	if (MHD_get_timeout(http, &of_library) == MHD_YES && of_library < wait)
		wait = of_library;
	if (wait == UINT64_MAX)
		return -1;
	return wait < INT32_MAX ? (int)wait : INT32_MAX;
}

static void serve(struct MHD_Daemon *http)
{
	struct epoll_event event;

	for (;;) {
		if (epoll_wait(POLICY_EXPORTER_EPOLL_FD, &event, 1, timeout(http, now_ms())) < 0 &&
		    errno != EINTR)
			__builtin_trap();
		end_late(now_ms());
		if (MHD_run(http) == MHD_NO)
			__builtin_trap();
	}
}

int main(int argc, char **argv)
{
	static const char key[] = "--insecure=";
	struct policy_limits limits = {.n_files = FILES_MAX};
	struct policy_failure failure;
	struct MHD_Daemon *http;

	if (argc != 2 || strncmp(argv[1], key, strlen(key)) != 0) {
		fprintf(stderr, "vsockd-exporter is started by vsockd, see vsockd(8)\n");
		return EX_USAGE;
	}
	limits.insecure = (uint32_t)strtoul(argv[1] + strlen(key), NULL, 10);
	http = prepare();
	if (!http) {
		fprintf(stderr, "vm=- error: exporter: cannot prepare libmicrohttpd\n");
		return EX_OSERR;
	}
	if (policy_enter(POLICY_EXPORTER, &limits, &failure) < 0) {
		fprintf(stderr, "vm=- error: exporter: %s\n", failure.text);
		return EX_NOPERM;
	}
	serve(http);
}
