/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/disposal.h"
#include "broker/front.h"
#include "broker/log.h"

/* Messages of one front-end in one wake-up. */
#define ROUND_MESSAGES 32

/*
 * Workers that die within DEATH_MEMORY_MS of each other: the first ones are
 * replaced at once, then ever later, then the device has failed. A guest that
 * can kill its worker at will gets so many tries, and costs so little.
 */
#define DEATH_MEMORY_MS	 10000
#define DEATHS_AT_ONCE	 3
#define DEATHS_MAX	 8
#define DEATH_BACKOFF_MS 100

/* Lines about one VM: so many in a row, then one each LOG_REFILL_MS. */
#define LOG_TOKENS	      32
#define LOG_TOKENS_FOR_ERRORS 8 /* of them: what ends a device is said behind any chatter */
#define LOG_REFILL_MS	      500
/* After so long a time how many were left out is told. */
#define LOG_QUIET_MS 2000

/* So many fds that can't be closed, and no further front-end of this VM is accepted. */
#define KEPT_MAX 16

/* A VMM that connects again does so within seconds; cloud-hypervisor gives up after 60. */
#define RESUME_MS 60000

/* No file or memory left for an accepted socket: nobody tells when there is again. */
#define ACCEPT_AGAIN_MS 100

static void refill_log(struct device *device)
{
	uint64_t now = device->front->now;
	uint64_t refill = (now - device->log_refill) / LOG_REFILL_MS;

	if (refill == 0)
		return;
	device->log_refill = now;
	device->log_tokens =
		(uint32_t)(device->log_tokens + refill < LOG_TOKENS ? device->log_tokens + refill
								    : LOG_TOKENS);
}

static void tell_unlogged(struct device *device)
{
	if (device->n_unlogged == 0 || device->log_tokens <= 1)
		return;
	device->log_tokens--;
	log_event(LOG_WARNING | LOG_AS(LOG_ID_LEFT_OUT), device->configuration->guest_cid,
		  "%" PRIu64 " lines left out: too many at a time", device->n_unlogged);
	device->n_unlogged = 0;
}

void device_log(struct device *device, int priority, const char *format, ...)
{
	char text[512];
	va_list arguments;

	refill_log(device);
	if (device->log_tokens == 0 ||
	    (LOG_PRI(priority) > LOG_ERR && device->log_tokens <= LOG_TOKENS_FOR_ERRORS)) {
		device->n_unlogged++;
		device->tell_unlogged_at = device->front->now + LOG_QUIET_MS;
		return;
	}
	tell_unlogged(device);
	device->log_tokens--;
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	log_event(priority, device->configuration->guest_cid, "%s", text);
}

/* Also when there is nothing else to say for long. */
static void update_log(struct device *device)
{
	if (device->n_unlogged == 0 || device->front->now < device->tell_unlogged_at)
		return;
	refill_log(device);
	tell_unlogged(device);
}

static uint64_t protocol_features(const struct device *device)
{
	uint32_t offers = device->configuration->offers;
	uint32_t experiments = device->front->configuration->experiments;

	return SESSION_PROTOCOL_FEATURES |
	       (offers & CONFIGURATION_OFFER_IN_BAND ? SESSION_PROTOCOL_FEATURES_IN_BAND : 0) |
	       (offers & CONFIGURATION_OFFER_GPA ? VHOST_USER_PROTOCOL_F_GPA_ADDRESSES : 0) |
	       (experiments & CONFIGURATION_EXPERIMENT_SUSPEND ? VHOST_USER_PROTOCOL_F_SUSPEND : 0);
}

void device_renew_limits(struct device *device)
{
	device->limits.max_bandwidth = device->configuration->max_bandwidth;
	device->limits.max_buffer_memory = device->configuration->max_buffer_memory;
	device->limits.incoming = device->configuration->incoming;
	device->owes_limits = false;
}

static void take_limits(struct device *device)
{
	const struct vm_configuration *configuration = device->configuration;

	device->limits = (struct device_limits){
		.tx_buffer_size = configuration->tx_buffer_size,
		.max_connections = configuration->max_connections,
		.max_handshakes = configuration->max_handshakes,
		.wait_s = configuration->wait_s,
		.poll_us = configuration->poll_us,
		.is_quiet = configuration->is_quiet,
	};
	device_renew_limits(device);
	if (device->endpoints.n_max != configuration->max_connections)
		endpoints_resize(&device->endpoints, configuration->max_connections);
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
	take_limits(device);
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

int *device_listener(struct device *device, size_t number)
{
	return number == SOCKET_FRONTEND ? &device->listener
					 : &device->host_listeners[number - SOCKET_HOST].fd;
}

void device_resume(struct device *device)
{
	device->hold_until = device->front->now + RESUME_MS;
}

void device_clear(struct device *device, struct front *front, uint32_t index)
{
	static const struct vm_configuration absent = {.guest_cid = 0};
	struct endpoints endpoints = device->endpoints;
	int ring_journal = device->ring_journal;

	*device = (struct device){
		.front = front,
		.configuration = &absent,
		.index = index,
		.log_tokens = LOG_TOKENS,
		.restore = {.result = -ENODATA},
		.notify = {.fd = -1},
		.discarded = -1,
		.endpoints = endpoints,
		.ring_journal = ring_journal,
	};
	for (size_t number = 0; number < SOCKETS_MAX; number++) {
		*device_listener(device, number) = -1;
		device->next_listeners[number] = -1;
	}
	for (size_t i = 0; i < HOST_LISTENERS_MAX; i++)
		device->host_listeners[i].type =
			i == SOCKET_MESSAGES - SOCKET_HOST ? ENDPOINT_MESSAGES : ENDPOINT_STREAM;
	siblings_init(device);
}

bool device_is_present(const struct device *device)
{
	return device->configuration->guest_cid != 0;
}

static uint64_t listener_tag(const struct device *device, size_t number)
{
	return number == SOCKET_FRONTEND
		       ? device->index
		       : (uint64_t)device->index << HOST_LISTENER_BITS | (number - SOCKET_HOST);
}

bool device_listen(struct device *device, size_t number, int listener)
{
	bool is_host = number != SOCKET_FRONTEND;
	enum front_event event = is_host ? FRONT_EVENT_HOST_LISTENER : FRONT_EVENT_LISTENER;
	uint64_t tag = listener_tag(device, number);
	int r;

	*device_listener(device, number) = listener;
	if (is_host)
		device->host_listeners[number - SOCKET_HOST].is_listening = true;
	else
		device->listens_to_frontend = true;
	r = front_watch(device->front, EPOLL_CTL_ADD, listener, EPOLLIN, event, tag);
	/* Another one's so far. */
	if (r == -EEXIST)
		r = front_watch(device->front, EPOLL_CTL_MOD, listener, EPOLLIN, event, tag);
	return r == 0;
}

/* Where those lead whose port is a rule's. */
static void take_rules(struct device *device)
{
	const struct vm_configuration *configuration = device->configuration;

	for (size_t i = 0; i < configuration->n_listens; i++) {
		struct host_listener *listener =
			&device->host_listeners[SOCKET_RULES - SOCKET_HOST + i];

		listener->has_port = true;
		listener->guest_port = configuration->listens[i].first;
	}
}

static bool has_limits_of(const struct device *device, const struct vm_configuration *configuration)
{
	return device->limits.max_bandwidth == configuration->max_bandwidth &&
	       device->limits.max_buffer_memory == configuration->max_buffer_memory &&
	       ports_is_same_filter(&device->limits.incoming, &configuration->incoming);
}

void device_configure(struct device *device, const struct vm_configuration *configuration)
{
	/* Who still delivers for a VM that had this place has its memory for the rings. */
	if (!device_is_present(device))
		workers_clear_place(device->front, device->index);
	device->configuration = configuration;
	take_rules(device);
	device->owes_limits = !has_limits_of(device, configuration);
	if (!device->has_frontend)
		take_limits(device);
}

int device_accept_socket(struct device *device, int listener)
{
	int socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (socket < 0 && errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) {
		device_log(device, LOG_ERR, "cannot accept: %s", strerror(errno));
		device->accept_at = device->front->now + ACCEPT_AGAIN_MS;
	}
	return socket;
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

bool device_wants_worker(const struct device *device)
{
	return device->has_frontend && !device->worker &&
	       (!device->has_failed || device->owes_error) &&
	       device->front->now >= device->assign_at;
}

void device_assign(struct device *device, struct worker *worker)
{
	worker->state = WORKER_ASSIGNED;
	worker->was_assigned = true;
	worker->place = device->index;
	worker->device = device;
	worker->cid = device->configuration->guest_cid;
	device->owes_error = false;
	device->worker = worker;
	sync_begin(device);
}

/* ---- the end of things ---- */

/* What it was told last nobody answers any more; another one will be told everything. */
static void forget_worker(struct device *device)
{
	device->worker = NULL;
	device->sync.is_sent = false;
	device->told_quarantine = false;
	device->told_suspended = false;
	device->told_capture = 0;
}

void device_replace_worker(struct device *device)
{
	handover_cancel(device);
	worker_dismiss(device->worker, device->front);
	forget_worker(device);
	memset(device->was_running, 0, sizeof(device->was_running));
}

static void close_session(struct device *device, const char *why)
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

void device_end(struct device *device)
{
	if (device->has_frontend)
		close_session(device, NULL);
	for (size_t number = 0; number < SOCKETS_MAX; number++)
		if (*device_listener(device, number) >= 0 && !device->gives_listener[number])
			close(*device_listener(device, number));
	if (device->discarded >= 0)
		disposal_close(device->discarded);
	front_forget_connects(device->front, device);
	workers_forget(device->front, device);
	device_clear(device, device->front, device->index);
}

static void fail(struct device *device)
{
	device->has_failed = true;
	/* A fresh worker signals the error fds: the front writes to no fd of a front-end. */
	device->owes_error = true;
	device_log(device, LOG_ERR | LOG_AS(LOG_ID_DEVICE_FAILED),
		   "device failed: its worker died %" PRIu32
		   " times in a row; restart the guest to try again",
		   device->n_deaths);
	notify_failed(device);
	sync_fail(device);
	device_update(device);
}

void device_worker_died(struct device *device)
{
	uint64_t now = device->front->now;
	uint32_t n_open;

	handover_worker_died(device);
	siblings_lose(device);
	n_open = endpoints_lose(&device->endpoints);
	forget_worker(device);
	device->n_lost++;
	if (!device->has_frontend || device->has_failed)
		return;
	restore_worker_died(device);
	if (now - device->last_death > DEATH_MEMORY_MS)
		device->n_deaths = 0;
	device->last_death = now;
	device->n_deaths++;
	device_log(device, LOG_WARNING | LOG_AS(LOG_ID_WORKER_LOST),
		   "worker lost, %" PRIu32 " connection%s reset", n_open, n_open == 1 ? "" : "s");
	if (device->n_deaths >= DEATHS_MAX) {
		fail(device);
		return;
	}
	device->assign_at = now;
	if (device->n_deaths > DEATHS_AT_ONCE)
		device->assign_at += (uint64_t)DEATH_BACKOFF_MS
				     << (device->n_deaths - DEATHS_AT_ONCE);
	device_update(device);
}

uint64_t device_deadline(const struct device *device)
{
	uint64_t now = device->front->now;
	uint64_t deadline = handover_is_busy(device) ? UINT64_MAX : restore_deadline(device);

	if (device->accept_at > now && device->accept_at < deadline)
		deadline = device->accept_at;
	if (device->hold_until > now && device->hold_until < deadline)
		deadline = device->hold_until;
	if (device->n_unlogged > 0 && device->tell_unlogged_at < deadline)
		deadline = device->tell_unlogged_at;
	if (device->has_frontend && !device->worker && device->assign_at > now &&
	    device->assign_at < deadline)
		deadline = device->assign_at;
	if (device->sync.is_sent && device->sync.deadline < deadline)
		deadline = device->sync.deadline;
	if (handover_deadline(device) < deadline)
		deadline = handover_deadline(device);
	return deadline;
}

void device_run_timers(struct device *device)
{
	if (!device->sync.is_sent || device->sync.deadline > device->front->now)
		return;
	device_log(device, LOG_ERR, "worker does not answer");
	worker_kill(handover_late(device), device->front);
}

/* ---- the front-end ---- */

/* A reply, or the line that an answer of "no" deserves. false: the session is over. */
static bool after_message(struct device *device, int result)
{
	const char *reason = session_reason(&device->session);

	if (result == SESSION_E_CLOSE) {
		close_session(device, reason);
		return false;
	}
	if (result == SESSION_E_PENDING)
		return true;
	if (reason[0] != '\0')
		device_log(device, LOG_WARNING, "refused: %s", reason);
	if (device->session.reply_len > 0 && frontend_send(&device->frontend, device->session.reply,
							   device->session.reply_len) != 0) {
		close_session(device, "front-end left before it was answered");
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
		close_session(device, "it sent too many of them");
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
	close_session(device, r == FRONTEND_E_BROKEN ? frontend_reason(&device->frontend) : NULL);
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
		close_session(device, r == FRONTEND_E_BROKEN   ? frontend_reason(&device->frontend)
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
		close_session(device, NULL);
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

/* ---- host programs ---- */

bool device_rings_run(const struct device *device)
{
	const struct session_ring *rings = device->session.rings;
	/*
	 * With in-band kicks the driver's first packet starts ring 1. A host program that
	 * asks before may well be the reason for it.
	 */
	bool is_tx_up =
		rings[1].is_started || (session_is_in_band(&device->session, 1, SESSION_KICK) &&
					rings[1].num > 0 && rings[1].has_addresses);

	return device->has_frontend && !device_is_suspended(device) && rings[0].is_started &&
	       rings[0].is_enabled && is_tx_up && rings[1].is_enabled;
}

bool device_is_settled(const struct device *device)
{
	return device->worker && sync_is_idle(device) && !handover_is_busy(device);
}

bool device_is_running(const struct device *device)
{
	return device_rings_run(device) && device_is_settled(device) && !restore_holds(device);
}

static void listen_to(struct device *device, int listener, enum front_event event, size_t index,
		      bool listens, bool *is_listening)
{
	if (listener < 0 || listens == *is_listening)
		return;
	*is_listening = listens;
	front_watch(device->front, EPOLL_CTL_MOD, listener, listens ? EPOLLIN : 0, event, index);
}

static void listen_to_host(struct device *device)
{
	bool listens = device_listens_to_host(device);

	for (size_t i = 0; i <= device->configuration->n_listens; i++)
		listen_to(device, device->host_listeners[i].fd, FRONT_EVENT_HOST_LISTENER,
			  (size_t)device->index << HOST_LISTENER_BITS | i, listens,
			  &device->host_listeners[i].is_listening);
}

bool device_is_suspended(const struct device *device)
{
	return device->is_suspended || device->session.is_suspended;
}

bool device_has_settled(const struct device *device)
{
	return !device->worker || device->has_failed ||
	       (sync_is_idle(device) && device->told_suspended == device_is_suspended(device));
}

void device_suspend(struct device *device, bool is_suspended)
{
	if (device->is_suspended == is_suspended)
		return;
	device->is_suspended = is_suspended;
	device_log(device, LOG_NOTICE | LOG_AS(LOG_ID_SUSPENDED),
		   is_suspended ? "suspended by the operator" : "resumed by the operator");
	device_update(device);
}

void device_update(struct device *device)
{
	struct worker *worker;

	if (device_wants_worker(device)) {
		worker = workers_take_spare(device->front);
		if (worker)
			device_assign(device, worker);
	}
	handover_update(device);
	if (device_rings_run(device) && device_is_settled(device)) {
		device->has_driver = true;
		device->hold_until = 0;
	}
	/* To whoever waits for the rings to run they do, whoever serves them. */
	if (!handover_is_busy(device))
		restore_update(device, device_rings_run(device) && device_is_settled(device));
	sync_quarantine(device);
	sync_suspension(device);
	sync_capture(device);
	update_log(device);
	sync_limits(device);
	notify_discard(device);
	notify_flush(device);
	siblings_update(device);
	device_tell_endpoints(device);
	listen_to_host(device);
	/* One front-end a device: the next one waits in the backlog. */
	listen_to(device, device->listener, FRONT_EVENT_LISTENER, device->index,
		  !device->has_frontend && device->front->now >= device->accept_at &&
			  device->n_kept <= KEPT_MAX,
		  &device->listens_to_frontend);
}

void device_worker_writable(struct device *device)
{
	sync_run(device);
	device_update(device);
}
