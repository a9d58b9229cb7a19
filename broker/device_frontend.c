/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/device_frontend.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "broker/disposal.h"
#include "broker/front.h"
#include "broker/log.h"

/* Messages of one front-end in one wake-up. */
#define ROUND_MESSAGES 32

/* So many fds that can't be closed, and no further front-end of this VM is accepted. */
#define KEPT_MAX 16

static uint64_t protocol_features(const struct device *device)
{
	uint32_t offers = device->configuration->offers;
	uint32_t experiments = device->front->configuration->experiments;

	return SESSION_PROTOCOL_FEATURES |
	       (offers & CONFIGURATION_OFFER_IN_BAND ? SESSION_PROTOCOL_FEATURES_IN_BAND : 0) |
	       (offers & CONFIGURATION_OFFER_GPA ? VHOST_USER_PROTOCOL_F_GPA_ADDRESSES : 0) |
	       (experiments & CONFIGURATION_EXPERIMENT_SUSPEND ? VHOST_USER_PROTOCOL_F_SUSPEND : 0);
}

bool device_open_session(struct device *device, int socket)
{
	int r = front_watch(device->front, EPOLL_CTL_ADD, socket, EPOLLIN | EPOLLOUT | EPOLLET,
			    FRONT_EVENT_FRONTEND, device->index);

	/* Nobody would hear what it says: the end tells it, and it may come again. */
	if (r < 0) {
		device_log(device, LOG_ERR, "front-end refused: its socket cannot be watched: %s",
			   strerror(-r));
		close(socket);
		return false;
	}
	device_take_limits(device);
	frontend_init(&device->frontend, socket);
	session_init(&device->session, device->configuration->guest_cid, SESSION_FEATURES,
		     protocol_features(device), &sync_operations, device);
	notify_begin(device);
	device->has_frontend = true;
	device->frontend_since = device->front->now;
	device->has_more = true;
	device_log(device, LOG_INFO | LOG_AS(LOG_ID_FRONTEND_CONNECTED), "front-end connected");
	return true;
}

bool device_awaits_frontend(const struct device *device)
{
	return !device->has_frontend && device->front->now >= device->accept_at &&
	       device->n_kept <= KEPT_MAX;
}

void device_accept_frontend(struct device *device)
{
	int socket;

	if (device->has_frontend || device->listener < 0)
		return;
	socket = device_accept_socket(device, device->listener);
	if (socket >= 0)
		(void)device_open_session(device, socket);
	device_update(device);
}

void device_close_session(struct device *device, const char *why)
{
	if (why)
		device_log(device, LOG_ERR | LOG_AS(LOG_ID_FRONTEND_LEFT), "session closed: %s",
			   why);
	else
		device_log(device, LOG_INFO | LOG_AS(LOG_ID_FRONTEND_LEFT), "front-end left");
	handover_cancel(device);
	/* First: nothing may answer to a session that is being taken down. */
	device->has_frontend = false;
	device->has_more = false;
	device->has_driver = false;
	device->has_failed = false;
	device->owes_error = false;
	device->has_hung_up = false;
	device->n_deaths = 0;
	device->assign_at = 0;
	notify_end(device);
	device->sync = (struct sync){0};
	device->told_quarantine = false;
	device->told_suspended = false;
	device->told_capture = 0;
	device->had_event_ring = false;
	memset(device->was_running, 0, sizeof(device->was_running));
	memset(device->was_stopped, 0, sizeof(device->was_stopped));
	if (device->worker)
		worker_dismiss(device->worker, device->front);
	device->worker = NULL;
	restore_cancel(device);
	siblings_lose(device);
	endpoints_clear(&device->endpoints);
	frontend_end(&device->frontend);
	session_end(&device->session);
	device_update(device);
}

/* A reply, or the line that an answer of "no" deserves. false: the session is over. */
static bool after_message(struct device *device, int result)
{
	const char *reason = session_reason(&device->session);

	if (result == SESSION_E_CLOSE) {
		device_close_session(device, reason);
		return false;
	}
	if (result == SESSION_E_PENDING)
		return true;
	if (reason[0] != '\0')
		device_log(device, LOG_WARNING, "refused: %s", reason);
	if (device->session.reply_len > 0 && frontend_send(&device->frontend, device->session.reply,
							   device->session.reply_len) != 0) {
		device_close_session(device, "front-end left before it was answered");
		return false;
	}
	return true;
}

void device_complete(struct device *device, int status, uint32_t value)
{
	if (!device->has_frontend)
		return;
	after_message(device, session_complete(&device->session, status, value));
	/* Its next message may be there already. */
	if (device->has_frontend)
		device->has_more = true;
}

/* A message is taken when the one before is answered and the worker knows all of it. */
static bool may_receive(const struct device *device)
{
	return device->has_frontend && !device->sync.has_operation &&
	       !frontend_wants_write(&device->frontend) &&
	       (!device->worker || device_is_settled(device));
}

/* What the front-end's messages left behind that can't be closed. true: the session is over. */
static bool note_kept(struct device *device)
{
	unsigned int n_kept = disposal_take_kept();

	if (n_kept == 0)
		return false;
	device->n_kept += n_kept;
	if (device->n_kept <= KEPT_MAX)
		return false;
	device_log(device, LOG_ERR,
		   "%" PRIu32 " fds of its front-ends cannot be closed without waiting: no further "
		   "front-end is accepted, restart vsockd",
		   device->n_kept);
	if (device->has_frontend)
		device_close_session(device, "it sent too many of them");
	device_update(device);
	return true;
}

/* Said before it left, and answered to nobody. */
static void discard_messages(struct device *device)
{
	const struct vhost_user_message *message;
	int fds[VHOST_USER_FDS_MAX];
	size_t n_fds;
	int r;

	while ((r = frontend_receive(&device->frontend, &message, fds, &n_fds)) == 1)
		for (size_t i = 0; i < n_fds; i++)
			disposal_close(fds[i]);
	device_close_session(device,
			     r == FRONTEND_E_BROKEN ? frontend_reason(&device->frontend) : NULL);
}

/* false when there was no message, or the session is over. */
static bool receive_message(struct device *device)
{
	const struct vhost_user_message *message;
	int fds[VHOST_USER_FDS_MAX];
	size_t n_fds;
	int r = frontend_receive(&device->frontend, &message, fds, &n_fds);

	if (r == 0)
		return false;
	if (r != 1) {
		device_close_session(device, r == FRONTEND_E_BROKEN
						     ? frontend_reason(&device->frontend)
					     : r == FRONTEND_E_CLOSED ? NULL
								      : strerror(-r));
		return false;
	}
	restore_message_seen(device);
	r = session_handle(&device->session, message, fds, n_fds);
	if (!after_message(device, r))
		return false;
	if (r == SESSION_E_PENDING && device->has_failed)
		sync_fail(device);
	return !note_kept(device);
}

void device_frontend_event(struct device *device, uint32_t events)
{
	device->has_more = false;
	if (!device->has_frontend)
		return;
	if (events & (EPOLLHUP | EPOLLERR))
		device->has_hung_up = true;
	if (frontend_wants_write(&device->frontend) && frontend_flush(&device->frontend) != 0) {
		device_close_session(device, NULL);
		return;
	}
	for (int i = 0; i < ROUND_MESSAGES && may_receive(device); i++)
		if (!receive_message(device)) {
			note_kept(device);
			return;
		}
	/* Edge-triggered: nobody reminds of what is left. */
	device->has_more = may_receive(device);
	/* Nobody waits for the answer that its last message is still due. */
	if (device->has_hung_up && !device->has_more) {
		discard_messages(device);
		note_kept(device);
	}
}
