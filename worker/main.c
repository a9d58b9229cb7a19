/* SPDX-License-Identifier: Apache-2.0 */

/*
 * vsockd-worker: the process that touches one guest's rings and memory. Started
 * by the spawner with a channel as fd 3 and the buffer pool as fd 4. It makes
 * everything that it will ever need, confines itself, says Ready, and serves.
 *
 * Exit codes tell the log what happened before Ready; afterwards 0 is the only
 * one: what goes wrong then ends in a signal.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "policy/policy.h"
#include "worker/device.h"

#define EVENTS_MAX 64

struct arguments {
	struct policy_limits limits;
	uint64_t n_connections;
	uint64_t buffer_len;
};

static struct device device;

/*
 * Sanitizer builds only: an answer to the run-time's question. Leaks cannot be
 * looked for from inside an empty root, and there is no heap to leak from.
 */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0";
}

static bool parse_number(const char *text, const char *key, uint64_t *ret)
{
	size_t key_len = strlen(key);
	char *end;

	if (strncmp(text, key, key_len) != 0)
		return false;
	errno = 0;
	*ret = strtoull(text + key_len, &end, 10);
	return errno == 0 && *end == '\0' && end != text + key_len;
}

static bool parse_arguments(int argc, char **argv, struct arguments *ret)
{
	uint64_t insecure;

	if (argc != 5 || !parse_number(argv[1], "--files=", &ret->limits.n_files) ||
	    !parse_number(argv[2], "--connections=", &ret->n_connections) ||
	    !parse_number(argv[3], "--buffer=", &ret->buffer_len) ||
	    !parse_number(argv[4], "--insecure=", &insecure))
		return false;
	ret->limits.insecure = (uint32_t)insecure;
	return ret->n_connections > 0 && ret->n_connections <= UINT32_MAX / 4;
}

/* Everything that a guest will ever make use of, before it can ask for more. */
static int prepare(const struct arguments *arguments)
{
	void *pool;
	int epoll;

	pool = mmap(NULL, arguments->buffer_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
		    POLICY_WORKER_BUFFER_FD, 0);
	if (pool == MAP_FAILED)
		return -errno;
	close(POLICY_WORKER_BUFFER_FD);
	if (!buffer_pool_init(&device.pool, pool, arguments->buffer_len) ||
	    !connections_init(&device.connections, (uint32_t)arguments->n_connections) ||
	    !handover_sockets_init(&device.sockets, (uint32_t)arguments->n_connections))
		return -ENOMEM;

	device.state.capacity = transfer_len(device.connections.n_max + ORPHANS_MAX) + 1;
	device.state.bytes = malloc(device.state.capacity);
	if (!device.state.bytes)
		return -ENOMEM;

	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		return -errno;
	if (epoll != POLICY_WORKER_EPOLL_FD) {
		if (dup3(epoll, POLICY_WORKER_EPOLL_FD, O_CLOEXEC) < 0)
			return -errno;
		close(epoll);
	}
	if (!device_init(&device, POLICY_WORKER_CHANNEL_FD, POLICY_WORKER_EPOLL_FD))
		return -errno;
	return 0;
}

static bool say_ready(void)
{
	Vsockd__Ready ready = VSOCKD__READY__INIT;
	Vsockd__Envelope envelope;
	struct channel_packet packet;

	ready.version = MESSAGE_VERSION;
	message_wrap(&ready.base, &envelope);
	message_encode(&envelope, -1, &packet);
	return channel_send(POLICY_WORKER_CHANNEL_FD, &packet) == 0;
}

static uint64_t now_us(void)
{
	struct timespec now = {0};

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/*
 * While another worker serves, or may, only the front matters: events of sockets stay
 * where they are. They come before the next packet is moved.
 */
static bool rest_once(bool *ret_has_more)
{
	bool is_attached;

	channel_wait(POLICY_WORKER_CHANNEL_FD);
	device_set_time(&device, now_us());
	is_attached = control_receive(&device);
	*ret_has_more = true;
	return is_attached && control_flush(&device);
}

/* One wake-up. false when the front is gone. */
static bool serve_once(int timeout_ms, bool *ret_has_more)
{
	struct epoll_event events[EVENTS_MAX];
	bool is_attached = true;
	int n;

	if (device_is_at_rest(&device) && !device.waits_to_write)
		return rest_once(ret_has_more);
	n = epoll_wait(POLICY_WORKER_EPOLL_FD, events, EVENTS_MAX, timeout_ms);
	if (n < 0 && errno != EINTR)
		__builtin_trap();
	device_set_time(&device, now_us());
	for (int i = 0; i < n; i++)
		if (!device_note_event(&device, events[i].data.u64, events[i].events))
			is_attached = false;
	if (n >= 0 && n < EVENTS_MAX)
		device_note_look(&device);
	*ret_has_more = device_pump(&device);
	return is_attached && control_flush(&device);
}

static void serve(void)
{
	bool has_more = false;

	while (serve_once(has_more ? 0 : device_timeout(&device), &has_more))
		;
	device_detach(&device);
	while (!device_is_drained(&device))
		serve_once(device_timeout(&device), &has_more);
}

int main(int argc, char **argv)
{
	struct policy_failure failure;
	struct arguments arguments;
	int r;

	if (!parse_arguments(argc, argv, &arguments)) {
		fprintf(stderr, "vsockd-worker is started by vsockd, see vsockd(8)\n");
		return EX_USAGE;
	}
	r = prepare(&arguments);
	if (r < 0) {
		fprintf(stderr, "vm=- error: worker: preparing: %s\n", strerror(-r));
		return EX_OSERR;
	}
	r = policy_enter(POLICY_WORKER, &arguments.limits, &failure);
	if (r < 0) {
		fprintf(stderr, "vm=- error: worker: %s\n", failure.text);
		return EX_NOPERM;
	}
	if (!say_ready())
		return EX_OSERR;
	serve();
	_exit(EX_OK);
}
