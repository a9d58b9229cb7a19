/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/front.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "broker/control.h"
#include "broker/disposal.h"
#include "broker/log.h"
#include "broker/memory_file.h"
#include "broker/scrape.h"
#include "broker/spawner.h"
#include "policy/policy.h"

#define EVENTS_MAX 64

/* Requests to connect that the spawner has at a time: it answers in microseconds. */
#define CONNECTS_SENT_MAX 64

/*
 * A listener whose backlog is full: the kernel tells nobody when there is room
 * again, so it is asked for until the guest would give up by itself.
 */
#define CONNECT_RETRY_MS   10
#define CONNECT_GIVE_UP_MS 2000

/* As long until what could not be sent to the spawner is tried again. */
#define SEND_AGAIN_MS 10

/* Beside a STOP for each worker: what there is once. */
#define OWED_MORE 16

/* In the place of an endpoint: a pair for a client of the control socket. */
#define TOKEN_OF_CLIENT UINT32_MAX

/* A token names an endpoint of a device, and which life of it. */
static uint64_t make_token(const struct device *device, uint32_t endpoint)
{
	return (uint64_t)device->index << 48 |
	       (uint64_t)device->endpoints.all[endpoint].generation << 32 | endpoint;
}

static struct device *token_device(struct front *front, uint64_t token)
{
	return &front->devices[token >> 48];
}

/* NULL when the endpoint has ended since. */
static struct endpoint *token_endpoint(struct front *front, uint64_t token)
{
	struct endpoint *endpoint;

	endpoint = endpoints_find(&token_device(front, token)->endpoints, (uint32_t)token,
				  ENDPOINT_CONNECTING);
	if (!endpoint || endpoint->generation != (uint16_t)(token >> 32))
		return NULL;
	return endpoint;
}

int front_watch(struct front *front, int operation, int fd, uint32_t events, enum front_event kind,
		size_t index)
{
	struct epoll_event event = {
		.events = events,
		.data.u64 = (uint64_t)kind << 32 | index,
	};

	return epoll_ctl(front->epoll, operation, fd, &event) < 0 ? -errno : 0;
}

/* ---- the spawner ---- */

/* fd: -1, or one that goes along. */
static bool send_with_fd(struct front *front, const struct spawner_request *request, int fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr header;
	} control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS}};
	struct iovec part = {(void *)(uintptr_t)request, sizeof(*request)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	ssize_t n;

	if (fd >= 0) {
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
		message.msg_control = &control;
		message.msg_controllen = sizeof(control.bytes);
	}
	do
		n = sendmsg(front->spawner, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n == (ssize_t)sizeof(*request);
}

/* It passes, and no event says when: the kernel has no memory, or the channel no room. */
static bool is_passing(int error)
{
	return error == EAGAIN || error == ENOBUFS || error == ENOMEM;
}

static void send_later(struct front *front)
{
	if (front->send_at == 0)
		front->send_at = front->now + SEND_AGAIN_MS;
}

/*
 * What the spawner has to know it gets, in order, sooner or later. false: its end of the
 * channel is gone, of which the loop learns by itself.
 */
static bool send_request(struct front *front, const struct spawner_request *request)
{
	if (front->n_owed == 0 && send_with_fd(front, request, -1))
		return true;
	if ((front->n_owed == 0 && !is_passing(errno)) || front->n_owed == front->n_owed_max)
		return false;
	front->owed[front->n_owed++] = *request;
	send_later(front);
	return true;
}

static void send_owed(struct front *front)
{
	size_t n_sent = 0;

	while (n_sent < front->n_owed && send_with_fd(front, &front->owed[n_sent], -1))
		n_sent++;
	front->n_owed -= n_sent;
	memmove(front->owed, front->owed + n_sent, front->n_owed * sizeof(*front->owed));
	if (front->n_owed > 0)
		send_later(front);
}

bool front_request_spawn(struct front *front, bool is_first_program, uint64_t token)
{
	struct spawner_request request = {
		.kind = SPAWNER_SPAWN,
		.number = is_first_program,
		.token = token,
	};

	return send_request(front, &request);
}

void front_request_stop(struct front *front, uint32_t number)
{
	struct spawner_request request = {.kind = SPAWNER_STOP, .number = number};

	if (!send_request(front, &request))
		front->exit_code = EX_SOFTWARE;
}

static void choose_request(const struct endpoint *endpoint, struct spawner_request *request)
{
	request->kind = SPAWNER_PAIR;
	request->type = endpoint->type;
	if (endpoint->is_accepted) {
		request->kind = SPAWNER_JUDGE;
	} else if (endpoint->client != 0) {
		request->number = request->device;
	} else if (endpoint->cid == ENDPOINT_HOST_CID) {
		request->kind = SPAWNER_CONNECT;
		request->number = endpoint->port;
	} else {
		request->number = endpoint->other_device;
	}
}

static void send_bare(struct front *front, enum spawner_request_kind kind)
{
	struct spawner_request request = {.kind = kind};

	if (!send_request(front, &request))
		front->exit_code = EX_SOFTWARE;
}

bool front_request_reload(struct front *front)
{
	struct spawner_request request = {.kind = SPAWNER_RELOAD_NOW};

	return send_request(front, &request);
}

void front_request_ready(struct front *front)
{
	send_bare(front, SPAWNER_READY);
}

void front_request_reloaded(struct front *front, unsigned int bank)
{
	struct spawner_request request = {.kind = SPAWNER_RELOADED, .number = bank};

	if (!send_request(front, &request))
		front->exit_code = EX_SOFTWARE;
}

static void forget_first_connect(struct front *front)
{
	front->first_connect = (front->first_connect + 1) % front->n_connects_max;
	front->n_connects--;
}

/* Guests that shared a group when it was queued; the configuration may have changed. */
static bool is_allowed(struct front *front, const struct device *device,
		       const struct endpoint *endpoint)
{
	return endpoint->cid == ENDPOINT_HOST_CID || endpoint->client != 0 ||
	       configuration_shares_group(device->configuration,
					  front->devices[endpoint->other_device].configuration);
}

static void send_connects(struct front *front)
{
	int error;

	while (front->n_connects > 0 && front->n_connects_sent < CONNECTS_SENT_MAX) {
		uint64_t token = front->connects[front->first_connect];
		const struct endpoint *endpoint = token_endpoint(front, token);
		struct spawner_request request = {
			.device = (uint32_t)(token >> 48),
			.token = token,
		};

		if (endpoint && !is_allowed(front, token_device(front, token), endpoint)) {
			forget_first_connect(front);
			siblings_paired(token_device(front, token), (uint32_t)token, EACCES, NULL);
			continue;
		}
		if (endpoint) {
			choose_request(endpoint, &request);
			if (!send_with_fd(front, &request,
					  endpoint->is_accepted ? endpoint->fd : -1)) {
				if (is_passing(errno) || !endpoint->is_accepted) {
					send_later(front);
					return;
				}
				/* ETOOMANYREFS: nobody would say when it can be sent. */
				error = errno;
				forget_first_connect(front);
				device_judged(token_device(front, token), (uint32_t)token, error,
					      NULL);
				continue;
			}
			front->n_connects_sent++;
		}
		forget_first_connect(front);
	}
}

static void queue_connect(struct front *front, uint64_t token)
{
	front->connects[(front->first_connect + front->n_connects) % front->n_connects_max] = token;
	front->n_connects++;
	send_connects(front);
}

/* As many as there can be, unless VMs shrink and grow while this many connect. */
static bool is_full(const struct front *front)
{
	return front->n_connects + front->n_retries >= front->n_connects_max;
}

void front_request_connect(struct front *front, struct device *device, uint32_t endpoint)
{
	if (is_full(front)) {
		if (device->endpoints.all[endpoint].is_accepted)
			device_judged(device, endpoint, ENOBUFS, NULL);
		else
			device_connected(device, endpoint, ENOBUFS, -1);
		return;
	}
	device->endpoints.all[endpoint].give_up_at = front->now + CONNECT_GIVE_UP_MS;
	queue_connect(front, make_token(device, endpoint));
}

bool front_request_log_level(struct front *front, int level)
{
	struct spawner_request request = {.kind = SPAWNER_LOG_LEVEL, .number = (uint32_t)level};

	return send_request(front, &request);
}

bool front_request_pair(struct front *front, const struct device *device, uint16_t client,
			uint32_t type)
{
	struct spawner_request request = {
		.kind = SPAWNER_PAIR,
		.device = device->index,
		.number = device->index,
		.type = type,
		.token = (uint64_t)device->index << 48 | (uint64_t)client << 32 | TOKEN_OF_CLIENT,
	};

	return send_request(front, &request);
}

static void retry_connect(struct front *front, uint64_t token)
{
	size_t at = (front->first_retry + front->n_retries) % front->n_connects_max;

	front->retries[at] = token;
	front->retry_times[at] = front->now + CONNECT_RETRY_MS;
	front->n_retries++;
}

/* Those of the ring that are not the device's, in their order; times may be NULL. */
static size_t forget_tokens(const struct front *front, const struct device *device,
			    uint64_t *tokens, uint64_t *times, size_t first, size_t n)
{
	size_t n_kept = 0;

	for (size_t i = 0; i < n; i++) {
		size_t from = (first + i) % front->n_connects_max;
		size_t to = (first + n_kept) % front->n_connects_max;

		if (tokens[from] >> 48 == device->index)
			continue;
		tokens[to] = tokens[from];
		if (times)
			times[to] = times[from];
		n_kept++;
	}
	return n_kept;
}

void front_forget_connects(struct front *front, const struct device *device)
{
	front->n_connects = forget_tokens(front, device, front->connects, NULL,
					  front->first_connect, front->n_connects);
	front->n_retries = forget_tokens(front, device, front->retries, front->retry_times,
					 front->first_retry, front->n_retries);
}

static void run_retries(struct front *front)
{
	if (front->send_at != 0 && front->send_at <= front->now) {
		front->send_at = 0;
		send_owed(front);
		send_connects(front);
	}
	while (front->n_retries > 0 && front->retry_times[front->first_retry] <= front->now) {
		queue_connect(front, front->retries[front->first_retry]);
		front->first_retry = (front->first_retry + 1) % front->n_connects_max;
		front->n_retries--;
	}
}

static void on_connected(struct front *front, const struct spawner_reply *reply, int fd)
{
	const struct endpoint *endpoint;

	front->n_connects_sent--;
	endpoint = token_endpoint(front, reply->token);
	if (!endpoint) {
		if (fd >= 0)
			close(fd);
	} else if (reply->error == EAGAIN && front->now < endpoint->give_up_at) {
		retry_connect(front, reply->token);
	} else {
		device_connected(token_device(front, reply->token), (uint32_t)reply->token,
				 reply->error, fd);
	}
	send_connects(front);
}

static void on_judged(struct front *front, const struct spawner_reply *reply)
{
	const struct peer peer = {.user = reply->number, .group = reply->program};

	front->n_connects_sent--;
	if (token_endpoint(front, reply->token))
		device_judged(token_device(front, reply->token), (uint32_t)reply->token,
			      reply->error, &peer);
	send_connects(front);
}

static void on_paired(struct front *front, const struct spawner_reply *reply, const int *fds)
{
	const struct endpoint *endpoint;

	if ((uint32_t)reply->token == TOKEN_OF_CLIENT) {
		control_paired(front, (uint16_t)(reply->token >> 32), reply->error, fds);
		return;
	}
	front->n_connects_sent--;
	endpoint = token_endpoint(front, reply->token);
	if (endpoint && endpoint->client != 0) {
		control_accepted(token_device(front, reply->token), (uint32_t)reply->token,
				 reply->error, fds);
	} else if (endpoint) {
		siblings_paired(token_device(front, reply->token), (uint32_t)reply->token,
				reply->error, fds);
	} else if (reply->error == 0) {
		close(fds[0]);
		close(fds[1]);
	}
	send_connects(front);
}

static void on_spawned(struct front *front, const struct spawner_reply *reply, const int *fds)
{
	const struct workers_spawned spawned = {
		.number = reply->number,
		.pid = reply->device,
		.program = reply->program,
		.channel = fds[0],
		.buffer = fds[1],
		.buffer_size = reply->buffer_size,
		.token = reply->token,
	};

	if (reply->error == 0)
		workers_spawned(front, &spawned);
	else
		workers_not_spawned(front, reply->error, reply->token);
}

#define REPLY_FDS_MAX 2

static size_t count_fds(const struct spawner_reply *reply)
{
	switch (reply->kind) {
	case SPAWNER_PAIRED:
	case SPAWNER_SPAWNED:
		return 2;
	case SPAWNER_CONNECTED:
	case SPAWNER_LISTENER:
		return 1;
	default:
		return 0;
	}
}

/*
 * The fds of a reply: all that belong to it, and error 0, or none and -1 each.
 * Some may have found no number here: the limit on open files is reached.
 */
static void take_fds(struct msghdr *message, struct spawner_reply *reply, int ret_fds[])
{
	size_t n_wanted = count_fds(reply), n = 0;
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(message);

	ret_fds[0] = -1;
	ret_fds[1] = -1;
	if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
		n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(ret_fds, CMSG_DATA(cmsg), n * sizeof(int));
	}
	if (n == n_wanted || n_wanted == 0 || (reply->error != 0 && reply->error != EINPROGRESS))
		return;
	reply->error = EMFILE;
	for (size_t i = 0; i < n; i++) {
		close(ret_fds[i]);
		ret_fds[i] = -1;
	}
}

/* One reply: 1, 0 when there is none, -1 when the spawner is gone. The fds are the caller's. */
static int receive_reply(struct front *front, struct spawner_reply *ret_reply, int ret_fds[])
{
	union {
		char bytes[CMSG_SPACE(REPLY_FDS_MAX * sizeof(int))];
		struct cmsghdr alignment;
	} control;
	struct iovec part = {ret_reply, sizeof(*ret_reply)};
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	ssize_t n = recvmsg(front->spawner, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	if (n < 0)
		return is_passing(errno) || errno == EINTR ? 0 : -1;
	if (n != (ssize_t)sizeof(*ret_reply))
		return -1;
	take_fds(&message, ret_reply, ret_fds);
	return 1;
}

static void on_reply(struct front *front, const struct spawner_reply *reply, const int *fds)
{
	switch (reply->kind) {
	case SPAWNER_PING:
		send_bare(front, SPAWNER_ALIVE);
		return;
	case SPAWNER_LISTENER:
		changes_listener(front, reply, fds[0]);
		return;
	case SPAWNER_MOVE:
		changes_move(front, reply);
		return;
	case SPAWNER_RELOAD:
		changes_reload(front, reply);
		return;
	case SPAWNER_RELOAD_DONE:
		control_reloaded(front, reply->error);
		return;
	case SPAWNER_SPAWNED:
		on_spawned(front, reply, fds);
		return;
	case SPAWNER_CONNECTED:
		on_connected(front, reply, fds[0]);
		return;
	case SPAWNER_JUDGED:
		on_judged(front, reply);
		return;
	case SPAWNER_PAIRED:
		on_paired(front, reply, fds);
		return;
	case SPAWNER_EXITED:
		workers_exited(front, reply->number, reply->error);
		return;
	default:
		front->exit_code = EX_SOFTWARE;
	}
}

static void on_spawner(struct front *front)
{
	for (int i = 0; i < EVENTS_MAX; i++) {
		struct spawner_reply reply;
		int fds[REPLY_FDS_MAX], r = receive_reply(front, &reply, fds);

		if (r == 0)
			return;
		if (r < 0) {
			front->exit_code = EX_SOFTWARE;
			return;
		}
		on_reply(front, &reply, fds);
	}
}

/* ---- the loop ---- */

static uint64_t now_ms(void)
{
	struct timespec now = {0};

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void on_event(struct front *front, uint64_t tag, uint32_t events)
{
	uint32_t index = (uint32_t)tag;

	switch ((enum front_event)(tag >> 32)) {
	case FRONT_EVENT_SPAWNER:
		on_spawner(front);
		return;
	case FRONT_EVENT_LISTENER:
		device_accept_frontend(&front->devices[index]);
		return;
	case FRONT_EVENT_HOST_LISTENER:
		device_accept_host(&front->devices[index >> HOST_LISTENER_BITS],
				   index & ((1u << HOST_LISTENER_BITS) - 1));
		return;
	case FRONT_EVENT_FRONTEND:
		device_frontend_event(&front->devices[index], events);
		return;
	case FRONT_EVENT_WORKER:
		workers_event(front, &front->workers[index], events);
		return;
	case FRONT_EVENT_CONTROL_LISTENER:
		control_accept(front);
		return;
	case FRONT_EVENT_CONTROL:
		control_event(front, index, events);
		return;
	case FRONT_EVENT_NOTIFY:
		notify_flush(&front->devices[index]);
		return;
	case FRONT_EVENT_SCRAPE_LISTENER:
		scrape_accept(front);
		return;
	case FRONT_EVENT_SCRAPE:
		scrape_event(front, index, events);
		return;
	}
}

static int timeout(const struct front *front)
{
	uint64_t deadline = workers_deadline(front), wait;

	for (size_t i = 0; i < front->n_devices; i++) {
		uint64_t of_device = device_deadline(&front->devices[i]);

		if (front->devices[i].has_more)
			return 0;
		if (of_device < deadline)
			deadline = of_device;
	}
	if (front->n_retries > 0 && front->retry_times[front->first_retry] < deadline)
		deadline = front->retry_times[front->first_retry];
	if (front->spawn_at > front->now && front->spawn_at < deadline)
		deadline = front->spawn_at;
	if (front->send_at != 0 && front->send_at < deadline)
		deadline = front->send_at;
	if (control_deadline(front) < deadline)
		deadline = control_deadline(front);
	if (scrape_deadline(front) < deadline)
		deadline = scrape_deadline(front);
	if (deadline == UINT64_MAX)
		return -1;
	wait = deadline > front->now ? deadline - front->now : 0;
	return wait < INT32_MAX ? (int)wait : INT32_MAX;
}

/* Sessions that came as fds don't come again. */
static bool are_all_over(const struct front *front)
{
	for (size_t i = 0; i < front->n_devices; i++)
		if (front->devices[i].listener >= 0 || front->devices[i].has_frontend)
			return false;
	return true;
}

static void run_once(struct front *front)
{
	struct epoll_event events[EVENTS_MAX];
	int n = epoll_wait(front->epoll, events, EVENTS_MAX, timeout(front));

	if (n < 0 && errno != EINTR) {
		front->exit_code = EX_OSERR;
		return;
	}
	front->now = now_ms();
	for (int i = 0; i < n; i++)
		on_event(front, events[i].data.u64, events[i].events);
	workers_run_timers(front);
	run_retries(front);
	for (size_t i = 0; i < front->n_devices; i++) {
		if (front->devices[i].has_more)
			device_frontend_event(&front->devices[i], 0);
		device_run_timers(&front->devices[i]);
		device_update(&front->devices[i]);
	}
	workers_replenish(front);
	control_run(front);
	scrape_run(front);
	if (are_all_over(front))
		front->exit_code = EX_OK;
}

/*
 * Room for what may come, of which only what is used costs memory; in a file as the
 * workers' buffers are, because a host may count every byte of private memory.
 */
static void *reserve(uint64_t size)
{
	int fd = memfd_create("front", MFD_CLOEXEC);
	void *start = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, (off_t)size) == 0)
		start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (fd >= 0)
		close(fd);
	return start == MAP_FAILED ? NULL : start;
}

/* VMs that come later get their endpoints here. */
static bool place_endpoints(struct front *front)
{
	uint64_t size = endpoints_memory(CONFIGURATION_CONNECTIONS_MAX);
	char *memory = reserve(size * BANK_PLACES);

	for (size_t i = 0; i < BANK_PLACES && memory; i++)
		endpoints_place(&front->devices[i].endpoints, memory + i * size,
				CONFIGURATION_CONNECTIONS_MAX);
	return memory != NULL;
}

static bool allocate_endpoints(struct front *front)
{
	const struct configuration *configuration = front->configuration;
	bool is_good = true;

	for (size_t i = 0; i < front->n_devices && is_good; i++)
		is_good = endpoints_init(&front->devices[i].endpoints,
					 configuration->vms[i].max_connections);
	return is_good;
}

static bool allocate(struct front *front, const struct front_setup *setup)
{
	size_t n_places = front->banks ? BANK_PLACES : front->n_devices;
	size_t n_vms = front->banks ? CONFIGURATION_VMS_MAX : front->n_devices;

	front->n_workers_max = n_vms * SPAWNER_WORKERS_PER_VM + SPAWNER_WORKERS_SPARE;
	/* Tokens of endpoints that ended stay until their turn: as many once more. */
	front->n_connects_max = 2 * setup->n_files;
	front->devices = calloc(n_places, sizeof(struct device));
	front->workers = calloc(front->n_workers_max, sizeof(struct worker));
	front->n_owed_max = front->n_workers_max + OWED_MORE;
	front->owed = calloc(front->n_owed_max, sizeof(*front->owed));
	front->connects = reserve(front->n_connects_max * sizeof(uint64_t));
	front->retries = reserve(front->n_connects_max * sizeof(uint64_t));
	front->retry_times = reserve(front->n_connects_max * sizeof(uint64_t));
	if (!front->devices || !front->workers || !front->owed || !front->connects ||
	    !front->retries || !front->retry_times)
		return false;
	for (size_t i = 0; i < front->n_workers_max; i++)
		front->workers[i] = (struct worker){.channel = -1, .buffer = -1};
	if (!(front->banks ? place_endpoints(front) : allocate_endpoints(front)))
		return false;
	for (size_t i = 0; i < n_places; i++) {
		front->devices[i].ring_journal = memory_file_make("rings", RING_JOURNAL_LEN);
		if (front->devices[i].ring_journal < 0)
			return false;
		device_clear(&front->devices[i], front, (uint32_t)i);
	}
	return getrandom(&front->seed, sizeof(front->seed), 0) == sizeof(front->seed);
}

static bool begin_device(struct device *device, const struct vm_configuration *configuration,
			 const struct vm_sockets *sockets)
{
	device_configure(device, configuration);
	for (size_t number = 0; number < SOCKETS_MAX; number++) {
		int fd = sockets->all[number].fd;

		if (number == SOCKET_FRONTEND && sockets->is_connected)
			continue;
		if (fd >= 0 && !device_listen(device, number, fd))
			return false;
		if (sockets->all[number].is_passed)
			device_resume(device);
	}
	if (sockets->is_connected)
		device_open_session(device, sockets->all[SOCKET_FRONTEND].fd);
	return true;
}

/*
 * A unix socket takes a message at once or never (EMSGSIZE): the kernel wants so much
 * of the send buffer for itself, and the workers of two guests a byte for what they
 * tell each other of a message. All sockets start with the same one.
 */
#define MESSAGE_OVERHEAD (32 + 1)

static bool measure_messages(struct front *front)
{
	int size = 0;
	socklen_t len = sizeof(size);

	if (getsockopt(front->spawner, SOL_SOCKET, SO_SNDBUF, &size, &len) < 0 ||
	    size <= MESSAGE_OVERHEAD)
		return false;
	front->message_size = (uint32_t)(size - MESSAGE_OVERHEAD);
	return true;
}

static bool prepare(struct front *front, const struct front_setup *setup)
{
	front->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (front->epoll < 0 || !measure_messages(front) || !allocate(front, setup) ||
	    front_watch(front, EPOLL_CTL_ADD, setup->spawner, EPOLLIN, FRONT_EVENT_SPAWNER, 0) < 0)
		return false;
	for (size_t i = 0; i < front->n_devices; i++)
		if (!begin_device(&front->devices[i], &setup->configuration->vms[i],
				  &setup->sockets->vms[i]))
			return false;
	if (front->banks && banks_protect(front->banks) < 0)
		return false;
	if (setup->sockets->control.fd >= 0 &&
	    !control_init(front, setup->sockets->control.fd, setup->configuration->file))
		return false;
	return (setup->sockets->metrics.fd < 0 && setup->exporter < 0) ||
	       scrape_init(front, setup->sockets->metrics.fd, setup->exporter);
}

int front_run(const struct front_setup *setup)
{
	static struct front front;
	struct policy_failure failure;
	struct policy_limits limits = {
		.insecure = setup->configuration->insecure,
		.n_files = setup->n_files,
	};

	front = (struct front){
		.configuration = setup->configuration,
		.banks = setup->banks,
		.n_devices = setup->configuration->n_vms,
		.spawner = setup->spawner,
		.now = now_ms(),
		.exit_code = -1,
	};
	if (!prepare(&front, setup)) {
		log_event(LOG_ERR, LOG_NO_VM, "cannot prepare the front: %s", strerror(errno));
		return EX_OSERR;
	}
	if (policy_enter(POLICY_FRONT, &limits, &failure) < 0) {
		log_event(LOG_ERR, LOG_NO_VM, "front: %s", failure.text);
		return EX_NOPERM;
	}
	disposal_begin();
	front.now = now_ms();
	workers_replenish(&front);
	while (front.exit_code < 0)
		run_once(&front);
	return front.exit_code;
}
