/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include "broker/front.h"

/*
 * Guests that reach each other. The worker of the guest that asks names a CID and a
 * port; whether that is another guest of its groups is decided here, and once more
 * by the spawner, which makes a pair of sockets. The other guest's worker gets one
 * end with the REQUEST; only when that guest has accepted does the first worker get
 * its end, and answer. From there on the two workers know nothing but a socket
 * each, as with a host program; what a socket cannot say, that the other end was
 * reset, goes through here.
 */

#define NOBODY UINT64_MAX

static uint64_t make_name(const struct device *device, uint32_t index)
{
	return (uint64_t)device->index << 32 | index;
}

static struct device *named_device(const struct front *front, uint64_t name)
{
	return &front->devices[name >> 32];
}

static struct endpoint *named_endpoint(const struct front *front, uint64_t name)
{
	return &named_device(front, name)->endpoints.all[(uint32_t)name];
}

static struct device *other_device(const struct device *device, const struct endpoint *endpoint)
{
	return &device->front->devices[endpoint->other_device];
}

void siblings_init(struct device *device)
{
	device->first_held = NOBODY;
	device->last_held = NOBODY;
}

/* ---- requests that wait for a guest which cannot be asked now ---- */

static void hold(struct device *device, uint32_t index)
{
	struct endpoint *endpoint = &device->endpoints.all[index];
	struct device *to = other_device(device, endpoint);
	uint64_t name = make_name(device, index);

	endpoint->is_held = true;
	endpoint->next_held = NOBODY;
	endpoint->previous_held = to->last_held;
	if (to->last_held == NOBODY)
		to->first_held = name;
	else
		named_endpoint(device->front, to->last_held)->next_held = name;
	to->last_held = name;
}

static void let_go(struct device *device, struct endpoint *endpoint)
{
	struct device *to = other_device(device, endpoint);

	endpoint->is_held = false;
	if (endpoint->previous_held == NOBODY)
		to->first_held = endpoint->next_held;
	else
		named_endpoint(device->front, endpoint->previous_held)->next_held =
			endpoint->next_held;
	if (endpoint->next_held == NOBODY)
		to->last_held = endpoint->previous_held;
	else
		named_endpoint(device->front, endpoint->next_held)->previous_held =
			endpoint->previous_held;
}

/* ---- asking ---- */

static void refuse(struct device *device, uint32_t index, int error, const char *reason)
{
	struct endpoint *endpoint = &device->endpoints.all[index];

	device_log(device, LOG_INFO, "guest refused: CID %" PRIu32 ", port %" PRIu32 ": %s",
		   endpoint->cid, endpoint->port, reason);
	endpoint->status = -error;
	endpoint->state = ENDPOINT_REFUSED;
	endpoints_tell(&device->endpoints, index);
	device_tell_endpoints(device);
}

/* Its driver lives, but nothing can be put into its rings, or nothing may. */
static bool is_held_up(const struct device *to)
{
	if (restore_holds(to))
		return true;
	return to->has_driver && !to->has_failed && !device_is_running(to);
}

/* Why a guest is not asked, or NULL. */
static const char *why_not(const struct device *to)
{
	if (!to->has_driver)
		return "that guest has no driver for vsock (yet)";
	if (to->has_failed)
		return "that guest's device has failed";
	if (endpoints_are_full(&to->endpoints))
		return "that guest has as many connections as there may be";
	/* A guest that answers none must not fill its table with them. */
	if (to->n_unanswered >= to->configuration->max_handshakes)
		return "that guest has as many requests to answer as there may be";
	return NULL;
}

static void approach(struct device *device, uint32_t index)
{
	struct device *to = other_device(device, &device->endpoints.all[index]);
	const char *reason;

	if (is_held_up(to)) {
		hold(device, index);
		return;
	}
	reason = why_not(to);
	if (!reason)
		reason = admission_refuses(to);
	if (reason)
		refuse(device, index, ECONNREFUSED, reason);
	else
		front_request_connect(device->front, device, index);
}

static struct device *find(const struct device *device, uint32_t cid, const char **ret_reason)
{
	const struct front *front = device->front;

	*ret_reason = "no guest has that CID";
	for (size_t i = 0; i < front->n_devices; i++) {
		struct device *to = &front->devices[i];

		if (!device_is_present(to) || to->configuration->guest_cid != cid || to == device)
			continue;
		if (configuration_shares_group(device->configuration, to->configuration))
			return to;
		*ret_reason = "that guest is in none of its groups";
	}
	return NULL;
}

void siblings_connect(struct device *device, uint32_t index)
{
	struct endpoint *endpoint = &device->endpoints.all[index];
	const char *reason;
	struct device *to = find(device, endpoint->cid, &reason);

	if (to)
		reason = admission_refuses_port(to, endpoint->port);
	if (!to || reason) {
		refuse(device, index, ECONNREFUSED, reason);
		return;
	}
	endpoint->other_device = (uint16_t)to->index;
	approach(device, index);
}

/* The two ends know each other from here on. */
static void join(struct device *device, uint32_t index, struct device *to, const int *fds)
{
	struct endpoint *asking = &device->endpoints.all[index], *asked;
	uint32_t other = endpoints_take(&to->endpoints, ENDPOINT_WAITING); /* why_not() saw one */

	asked = &to->endpoints.all[other];
	asked->is_accepted = true;
	asked->type = asking->type;
	asked->cid = (uint32_t)device->configuration->guest_cid;
	asked->port = asking->guest_port;
	asked->guest_port = asking->port;
	asked->has_ports = true;
	asked->fd = fds[1];
	asked->other_device = (uint16_t)device->index;
	asked->other = index;
	asking->fd = fds[0];
	asking->other = other;
	to->n_unanswered++;
	endpoints_tell(&to->endpoints, other);
	device_tell_endpoints(to);
}

void siblings_paired(struct device *device, uint32_t index, int error, const int *fds)
{
	const struct endpoint *asking = &device->endpoints.all[index];
	struct device *to = other_device(device, asking);
	const char *reason = error ? strerror(error) : why_not(to);

	if (!reason && !asking->is_cancelled && device_is_running(to)) {
		join(device, index, to, fds);
		return;
	}
	if (error == 0) {
		close(fds[0]);
		close(fds[1]);
	}
	if (asking->is_cancelled)
		reason = "it gave up";
	if (reason && (error || asking->is_cancelled || !is_held_up(to)))
		refuse(device, index, error ? error : ECONNREFUSED, reason);
	else
		approach(device, index); /* it stopped while the pair was made */
}

/* ---- the end ---- */

/* Each end goes on alone. Returns the other one. */
static struct endpoint *cut(struct device *device, struct endpoint *endpoint)
{
	struct device *to = other_device(device, endpoint);
	struct endpoint *other = &to->endpoints.all[endpoint->other];

	if (endpoint->is_accepted && !endpoint->is_answered)
		device->n_unanswered--;
	if (other->is_accepted && !other->is_answered)
		to->n_unanswered--;
	endpoint->other = ENDPOINT_NONE;
	other->other = ENDPOINT_NONE;
	return other;
}

/* What the other guest is told comes before the end of its socket. */
static void cut_and_end(struct device *device, struct endpoint *endpoint)
{
	struct device *to = other_device(device, endpoint);
	const struct endpoint *other = cut(device, endpoint);
	int fd = endpoint->fd;

	endpoint->fd = -1;
	endpoints_end(&to->endpoints, (uint32_t)(other - to->endpoints.all), fd);
	device_tell_endpoints(to);
}

const char *siblings_answered(struct device *device, uint32_t index)
{
	struct endpoint *asked = endpoints_find(&device->endpoints, index, ENDPOINT_OPEN);
	struct endpoint *asking;
	struct device *from;

	if (!asked)
		asked = endpoints_find(&device->endpoints, index, ENDPOINT_ENDING);
	if (!asked || !asked->is_accepted || asked->cid == ENDPOINT_HOST_CID || asked->is_answered)
		return "Answered for a connection that no guest asked for";
	if (asked->other == ENDPOINT_NONE) {
		asked->is_answered = true; /* the one that asked has given up */
		return NULL;
	}
	from = other_device(device, asked);
	asking = &from->endpoints.all[asked->other];
	device->n_unanswered--;
	asked->is_answered = true;
	asking->state = ENDPOINT_WAITING;
	endpoints_tell(&from->endpoints, asked->other);
	device_tell_endpoints(from);
	return NULL;
}

const char *siblings_cancel(struct device *device, uint32_t request)
{
	struct endpoint *endpoint;
	uint32_t index;

	if (request >= 2 * device->endpoints.n_max)
		return "Cancel with a number out of range";
	index = device->endpoints.requests[request];
	if (index == ENDPOINT_NONE || index == ENDPOINT_REFUSAL)
		return NULL; /* the answer is on its way */
	endpoint = &device->endpoints.all[index];
	if (endpoint->state != ENDPOINT_CONNECTING)
		return NULL;
	endpoint->is_cancelled = true;
	if (!endpoint->is_held && endpoint->other == ENDPOINT_NONE)
		return NULL; /* the spawner answers soon */
	if (endpoint->is_held)
		let_go(device, endpoint);
	else
		cut_and_end(device, endpoint);
	endpoints_end(&device->endpoints, index, -1);
	device_tell_endpoints(device);
	return NULL;
}

void siblings_closed(struct device *device, uint32_t index, bool is_reset)
{
	struct endpoint *endpoint = &device->endpoints.all[index];
	struct device *from;

	if (endpoint->other == ENDPOINT_NONE)
		return;
	from = other_device(device, endpoint);
	if (endpoint->is_accepted && !endpoint->is_answered) {
		device_log(from, LOG_INFO,
			   "guest refused: CID %" PRIu64 ", port %" PRIu32
			   ": that guest did not accept",
			   device->configuration->guest_cid, endpoint->guest_port);
		is_reset = true;
	}
	if (is_reset)
		cut_and_end(device, endpoint);
	else
		cut(device, endpoint);
}

void siblings_lose(struct device *device)
{
	for (uint32_t i = 0; i < device->endpoints.n_max; i++) {
		struct endpoint *endpoint = &device->endpoints.all[i];

		if (endpoint->state == ENDPOINT_FREE)
			continue;
		if (endpoint->is_held)
			let_go(device, endpoint);
		if (endpoint->other != ENDPOINT_NONE)
			cut_and_end(device, endpoint);
	}
}

void siblings_update(struct device *device)
{
	while (device->first_held != NOBODY && !is_held_up(device)) {
		struct device *from = named_device(device->front, device->first_held);
		uint32_t index = (uint32_t)device->first_held;

		let_go(from, &from->endpoints.all[index]);
		approach(from, index);
	}
}
