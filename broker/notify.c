/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <syslog.h>
#include <unistd.h>

#include "broker/disposal.h"
#include "broker/front.h"

/*
 * In-band notifications. The front-end can reach both ends of the socket that it
 * sent, so nothing is ever read from it: who reads a socket waits for another who
 * is reading it, and the front waits for nobody. That is why no acknowledgement is
 * asked for. Writing waits for nobody. What finds no room is owed, one message a
 * ring and kind, for however many were due.
 */

struct notification {
	struct vhost_user_header header;
	struct vhost_user_vring_state state;
};

void notify_begin(struct device *device)
{
	device->notify = (struct notify){.fd = -1};
}

/*
 * The last one to close a socket waits for what lies in its queue to be closed, and
 * the front-end may have put anything there. So nothing more is let in, and the
 * worker, which is this VM's alone, is the last: it keeps the socket for a while.
 */
static bool hand_to_worker(struct device *device, int fd)
{
	Vsockd__Discard message = VSOCKD__DISCARD__INIT;

	return device->worker && !handover_is_busy(device) &&
	       worker_send(device->front, device->worker, 0, &message.base, fd) == 0;
}

static void discard(struct device *device, int fd)
{
	shutdown(fd, SHUT_RDWR);
	if (hand_to_worker(device, fd))
		close(fd);
	else if (device->discarded < 0)
		device->discarded = fd;
	else
		disposal_close(fd);
}

void notify_discard(struct device *device)
{
	if (device->discarded < 0 || !hand_to_worker(device, device->discarded))
		return;
	close(device->discarded);
	device->discarded = -1;
}

static void drop_socket(struct device *device)
{
	int fd = device->notify.fd;

	if (fd < 0)
		return;
	device->notify.fd = -1;
	/* The worker's copy would keep it there. */
	front_watch(device->front, EPOLL_CTL_DEL, fd, 0, FRONT_EVENT_NOTIFY, device->index);
	discard(device, fd);
}

void notify_end(struct device *device)
{
	drop_socket(device);
	notify_begin(device);
}

void notify_set_socket(struct device *device, int fd)
{
	drop_socket(device);
	device->notify.fd = fd;
	if (front_watch(device->front, EPOLL_CTL_ADD, fd, EPOLLOUT | EPOLLET, FRONT_EVENT_NOTIFY,
			device->index) < 0) {
		device_log(device, LOG_ERR, "cannot watch the back-end channel");
		device->notify.fd = -1;
		discard(device, fd);
	}
	notify_flush(device);
}

void notify_forget(struct device *device)
{
	device->notify.calls = 0;
	device->notify.errors = 0;
}

/* 0, or negative errno; -EAGAIN: there will be room. */
static int send_one(int fd, uint32_t request, uint32_t ring)
{
	struct notification notification = {
		.header = {.request = request,
			   .flags = VHOST_USER_VERSION,
			   .size = sizeof(notification.state)},
		.state = {.index = ring},
	};
	struct iovec part = {&notification, sizeof(notification)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	ssize_t n;

	do
		n = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	/* So few bytes are taken whole or not at all. */
	return n == (ssize_t)sizeof(notification) ? 0 : -EPIPE;
}

static int send_all(struct device *device, uint32_t *due, uint32_t request)
{
	while (*due != 0) {
		uint32_t ring = (uint32_t)__builtin_ctz(*due);
		int r = send_one(device->notify.fd, request, ring);

		if (r < 0)
			return r;
		*due &= *due - 1;
	}
	return 0;
}

/* "Suspended device state": no message to the front-end while no ring is started. */
static bool is_silent(const struct device *device)
{
	const struct sync *sync = &device->sync;

	if (device->told_suspended)
		return true;
	for (uint32_t i = 0; i < SESSION_RINGS; i++)
		if (device->session.rings[i].is_started)
			return false;
	/* The last one is stopping: what it used is told before GET_VRING_BASE is answered. */
	return !sync->has_operation || sync->operation.kind != STEP_RING_STOP;
}

void notify_flush(struct device *device)
{
	struct notify *notify = &device->notify;
	int r;

	if (notify->fd < 0 || is_silent(device))
		return;
	r = send_all(device, &notify->calls, VHOST_USER_BACKEND_VRING_CALL);
	if (r == 0)
		r = send_all(device, &notify->errors, VHOST_USER_BACKEND_VRING_ERR);
	if (r == 0 || r == -EAGAIN)
		return;
	device_log(device, LOG_ERR, "back-end channel: %s; the driver is notified no more",
		   strerror(-r));
	drop_socket(device);
}

const char *notify_message(struct device *device, const Vsockd__Notify *notify)
{
	enum session_ring_fd which = notify->is_error ? SESSION_ERR : SESSION_CALL;

	if (!(device->session.protocol_features & VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS) ||
	    notify->ring >= SESSION_RINGS)
		return "Notify without in-band notifications, or of a ring that is none";
	/* An eventfd has come meanwhile: the worker signals that one. */
	if (!session_is_in_band(&device->session, notify->ring, which))
		return NULL;
	if (notify->is_error)
		device->notify.errors |= UINT32_C(1) << notify->ring;
	else
		device->notify.calls |= UINT32_C(1) << notify->ring;
	notify_flush(device);
	return NULL;
}

void notify_failed(struct device *device)
{
	/* Of rings that the front-end has: QEMU keeps ring 2. */
	for (uint32_t i = 0; i < SESSION_RINGS; i++)
		if (device->session.rings[i].has_addresses &&
		    session_is_in_band(&device->session, i, SESSION_ERR))
			device->notify.errors |= UINT32_C(1) << i;
	notify_flush(device);
}

uint32_t notify_in_band(const struct device *device, uint32_t ring)
{
	const struct session *session = &device->session;

	return (session_is_in_band(session, ring, SESSION_KICK) ? RING_KICKED_IN_BAND : 0) |
	       (session_is_in_band(session, ring, SESSION_CALL) ? RING_CALLED_IN_BAND : 0) |
	       (session_is_in_band(session, ring, SESSION_ERR) ? RING_FAILS_IN_BAND : 0);
}
