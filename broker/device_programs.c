/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "broker/control.h"
#include "broker/front.h"
#include "broker/log.h"
#include "broker/spawner.h"

/* Connections of host programs in one wake-up. */
#define ROUND_ACCEPTS 64

/* Suspended, or its worker is about to learn that it is not. */
static bool is_to_be_waited_for(const struct device *device)
{
	return device_is_suspended(device) || device->told_suspended;
}

/*
 * Host programs are accepted while the guest can be asked, and sent away while
 * it has no driver. In between - its rings are stopped, its worker is being
 * replaced, or vsockd was - they wait in the backlog and lose nothing.
 */
bool device_listens_to_host(const struct device *device)
{
	if (device->front->now < device->accept_at || restore_holds(device) ||
	    is_to_be_waited_for(device))
		return false;
	if (!device->has_driver || device->has_failed)
		return device->front->now >= device->hold_until;
	return device_is_running(device) && endpoints_untold(&device->endpoints) == ENDPOINT_NONE;
}

static int send_accepted(struct device *device, uint32_t index)
{
	const struct endpoint *endpoint = &device->endpoints.all[index];
	Vsockd__Accepted accepted = VSOCKD__ACCEPTED__INIT;

	accepted.endpoint = index;
	accepted.cid = endpoint->cid;
	accepted.port = endpoint->port;
	accepted.guest_port = endpoint->guest_port;
	accepted.type = endpoint->type;
	accepted.is_direct = endpoint->is_direct;
	return worker_send(device->front, device->worker, 0, &accepted.base, endpoint->fd);
}

static int send_connected(struct device *device, uint32_t index)
{
	const struct endpoint *endpoint = &device->endpoints.all[index];
	Vsockd__Connected connected = VSOCKD__CONNECTED__INIT;

	connected.request = endpoint->request;
	connected.endpoint = index;
	connected.status = endpoint->status;
	connected.is_pending = endpoint->is_pending;
	return worker_send(device->front, device->worker, 0, &connected.base, endpoint->fd);
}

static int send_refusal(struct device *device, uint32_t request)
{
	Vsockd__Connected connected = VSOCKD__CONNECTED__INIT;

	connected.request = request;
	connected.status = -EMFILE;
	return worker_send(device->front, device->worker, 0, &connected.base, -1);
}

static int send_lost(struct device *device, uint32_t index)
{
	const struct endpoint *endpoint = &device->endpoints.all[index];
	Vsockd__Lost lost = VSOCKD__LOST__INIT;

	lost.guest_port = endpoint->guest_port;
	lost.host_port = endpoint->port;
	lost.type = endpoint->type;
	lost.endpoint = index;
	lost.cid = endpoint->cid;
	return worker_send(device->front, device->worker, 0, &lost.base, -1);
}

static int send_peer_reset(struct device *device, uint32_t index)
{
	const struct endpoint *endpoint = &device->endpoints.all[index];
	Vsockd__PeerReset reset = VSOCKD__PEER_RESET__INIT;

	reset.endpoint = index;
	reset.cid = endpoint->cid;
	reset.port = endpoint->port;
	reset.guest_port = endpoint->guest_port;
	reset.type = endpoint->type;
	return worker_send(device->front, device->worker, 0, &reset.base, -1);
}

static int send_endpoint(struct device *device, uint32_t index)
{
	const struct endpoint *endpoint = &device->endpoints.all[index];

	if (endpoint->state == ENDPOINT_LOST)
		return send_lost(device, index);
	if (endpoint->state == ENDPOINT_ENDING)
		return send_peer_reset(device, index);
	if (endpoint->state == ENDPOINT_GONE)
		return 0;
	return endpoint->is_accepted ? send_accepted(device, index) : send_connected(device, index);
}

/* Connections come after what the session holds. */
/*
 * With no ring started, or suspended, the device does nothing but answer the
 * front-end: what the worker has not been told of cannot change what it has.
 */
static bool is_quiet(const struct device *device)
{
	if (device_is_suspended(device))
		return true;
	for (uint32_t i = 0; i < SESSION_RINGS; i++)
		if (device->session.rings[i].is_started)
			return false;
	return true;
}

void device_tell_endpoints(struct device *device)
{
	uint32_t index;

	if (!device_is_settled(device) || restore_is_transferring(device) || is_quiet(device))
		return;
	while ((index = endpoints_refusal(&device->endpoints)) != ENDPOINT_NONE) {
		if (send_refusal(device, index) != 0)
			return;
		endpoints_refusal_told(&device->endpoints, index);
	}
	while ((index = endpoints_untold(&device->endpoints)) != ENDPOINT_NONE) {
		if (send_endpoint(device, index) != 0)
			return; /* there will be room, or the worker is gone */
		endpoints_told(&device->endpoints);
	}
}

/* virtio 1.3, 5.10.3: streams go without saying, unless the driver says so. */
static bool has_type(const struct device *device, uint8_t type)
{
	uint64_t features = device->session.features;

	if (type == ENDPOINT_MESSAGES)
		return features & VIRTIO_VSOCK_F_SEQPACKET;
	return (features & VIRTIO_VSOCK_F_STREAM) || !(features & VIRTIO_VSOCK_F_NO_IMPLIED_STREAM);
}

const char *device_refuses_host(const struct device *device, uint8_t type)
{
	/* Whether it has one is seen when it may show itself. */
	if (is_to_be_waited_for(device))
		return NULL;
	if (!device->has_driver)
		return "the guest has no driver for vsock (yet)";
	if (device->has_failed)
		return "the device has failed";
	return has_type(device, type) ? NULL : "the guest's driver has no sockets of this type";
}

struct endpoint *device_take_host(struct device *device, const struct host_listener *listener,
				  int fd)
{
	uint32_t index = endpoints_take(&device->endpoints, ENDPOINT_WAITING);
	struct endpoint *endpoint;

	if (index == ENDPOINT_NONE)
		return NULL;
	endpoint = &device->endpoints.all[index];
	endpoint->fd = fd;
	endpoint->is_accepted = true;
	if (listener) {
		endpoint->type = listener->type;
		endpoint->is_direct = listener->has_port;
		endpoint->guest_port = listener->guest_port;
	}
	if (listener && peers_are_limited(&device->configuration->peers)) {
		endpoint->state = ENDPOINT_CONNECTING;
		front_request_connect(device->front, device, index);
		return endpoint;
	}
	endpoints_tell(&device->endpoints, index);
	device_tell_endpoints(device);
	return endpoint;
}

void device_judged(struct device *device, uint32_t index, int error, const struct peer *peer)
{
	const char *reason = error == 0 ? admission_refuses(device) : NULL;

	if (error == 0 && !reason) {
		device->endpoints.all[index].state = ENDPOINT_WAITING;
		endpoints_tell(&device->endpoints, index);
		device_tell_endpoints(device);
		return;
	}
	endpoints_release(&device->endpoints, index);
	if (reason) {
		device_log(device, LOG_WARNING, "host program refused: %s", reason);
		return;
	}
	if (error != SPAWNER_E_PEER) {
		device_log(device, LOG_WARNING, "host program refused: its user: %s",
			   strerror(error));
		return;
	}
	device->n_refusals[REFUSAL_PEER]++;
	device_log(device, LOG_WARNING,
		   "host program refused: user %u, group %u may not talk with the guest",
		   (unsigned int)peer->user, (unsigned int)peer->group);
}

static void take_host(struct device *device, const struct host_listener *listener, int fd)
{
	const char *reason = device_refuses_host(device, listener->type);

	/* Who may not come at all takes no place of those who may: judged first. */
	if (!reason && !peers_are_limited(&device->configuration->peers))
		reason = admission_refuses(device);
	if (!reason && device_take_host(device, listener, fd))
		return;
	close(fd);
	device_log(device, LOG_WARNING, "host program refused: %s",
		   reason ? reason : "as many connections as there may be");
}

void device_accept_host(struct device *device, size_t index)
{
	const struct host_listener *listener = &device->host_listeners[index];

	/* fd -1: it was removed in this wake-up. */
	for (int i = 0; i < ROUND_ACCEPTS && listener->fd >= 0 && device_listens_to_host(device);
	     i++) {
		int fd = device_accept_socket(device, listener->fd);

		if (fd < 0)
			return;
		take_host(device, listener, fd);
	}
}

static void refuse_guest(struct device *device, uint32_t index, const char *reason)
{
	struct endpoint *endpoint = &device->endpoints.all[index];

	device_log(device, LOG_WARNING, "guest refused: CID %" PRIu32 ", port %" PRIu32 ": %s",
		   endpoint->cid, endpoint->port, reason);
	endpoint->status = -EACCES;
	endpoint->state = ENDPOINT_REFUSED;
	endpoints_tell(&device->endpoints, index);
	device_tell_endpoints(device);
}

const char *device_guest_connects(struct device *device, const Vsockd__Connect *connect)
{
	struct endpoints *endpoints = &device->endpoints;
	struct endpoint *endpoint;
	const char *reason;
	uint32_t index;

	if (connect->request >= 2 * endpoints->n_max ||
	    endpoints->requests[connect->request] != ENDPOINT_NONE)
		return "Connect with a number that is in use or out of range";
	if (connect->type != ENDPOINT_STREAM && connect->type != ENDPOINT_MESSAGES)
		return "Connect of a type that was not offered";
	index = endpoints_take(endpoints, ENDPOINT_CONNECTING);
	if (index == ENDPOINT_NONE) {
		/* It may have asked before it was told of host programs that came first. */
		endpoints_refuse(endpoints, connect->request);
		device_tell_endpoints(device);
		return NULL;
	}
	endpoints->requests[connect->request] = index;
	endpoint = &endpoints->all[index];
	endpoint->request = connect->request;
	endpoint->type = (uint8_t)connect->type;
	endpoint->cid = connect->cid;
	endpoint->port = connect->port;
	endpoint->guest_port = connect->guest_port;
	endpoint->has_ports = true;
	if (endpoint->cid == ENDPOINT_HOST_CID)
		endpoint->client = control_listener(device, connect->port);
	reason = admission_refuses_guest(device, connect->port);
	if (reason)
		refuse_guest(device, index, reason);
	else if (endpoint->cid == ENDPOINT_HOST_CID)
		front_request_connect(device->front, device, index);
	else
		siblings_connect(device, index);
	return NULL;
}

void device_connected(struct device *device, uint32_t index, int error, int fd)
{
	struct endpoint *endpoint = &device->endpoints.all[index];

	endpoint->is_pending = error == EINPROGRESS;
	if (endpoint->is_pending)
		error = 0; /* the worker sees how it ends */
	endpoint->fd = fd;
	endpoint->status = -error;
	endpoint->state = error == 0 ? ENDPOINT_WAITING : ENDPOINT_REFUSED;
	if (error == SPAWNER_E_PEER)
		device->n_refusals[REFUSAL_PEER]++;
	if (error != 0)
		device_log(device, LOG_INFO, "guest refused: host port %" PRIu32 ": %s",
			   endpoint->port,
			   error == SPAWNER_E_PEER ? "who listens there may not talk with the guest"
						   : strerror(error));
	endpoints_tell(&device->endpoints, index);
	device_tell_endpoints(device);
}
