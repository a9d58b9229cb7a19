/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/front.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sysexits.h>
#include <unistd.h>

#include "broker/control.h"
#include "broker/spawner.h"

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

void front_run_requests(struct front *front)
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
/* In a turn: others wait as well. */
#define REPLIES_MAX 64

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

void front_hear_spawner(struct front *front)
{
	for (int i = 0; i < REPLIES_MAX; i++) {
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

uint64_t front_requests_deadline(const struct front *front)
{
	uint64_t deadline = UINT64_MAX;

	if (front->n_retries > 0)
		deadline = front->retry_times[front->first_retry];
	if (front->send_at != 0 && front->send_at < deadline)
		deadline = front->send_at;
	return deadline;
}
