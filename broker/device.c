/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/device_frontend.h"
#include "broker/disposal.h"
#include "broker/front.h"
#include "broker/log.h"

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
	/* Where there was no line for it: others may go on to take each that there is. */
	device->tell_unlogged_at = device->front->now + LOG_REFILL_MS;
}

void device_renew_limits(struct device *device)
{
	device->limits.max_bandwidth = device->configuration->max_bandwidth;
	device->limits.max_buffer_memory = device->configuration->max_buffer_memory;
	device->limits.incoming = device->configuration->incoming;
	device->owes_limits = false;
}

void device_take_limits(struct device *device)
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
		device_take_limits(device);
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

void device_end(struct device *device)
{
	if (device->has_frontend)
		device_close_session(device, NULL);
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
	/* Edge-triggered: a message that came while it was told something is not told again. */
	device->has_more = device->has_frontend;
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
		  device_awaits_frontend(device), &device->listens_to_frontend);
}

void device_worker_writable(struct device *device)
{
	sync_run(device);
	device_update(device);
}
