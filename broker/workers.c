/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "broker/front.h"
#include "broker/log.h"

/* From fork to Ready is a matter of milliseconds; a host under load gets seconds. */
#define STARTING_MS 10000
/* A worker that leaves delivers what guests have sent: 30 s, and a few to end. */
#define LEAVING_MS 35000
/* So long without room in its channel: it reads nothing, and is told nothing it could answer. */
#define UNREAD_MS 5000
/* After a start that failed: the reason seldom goes away at once. */
#define SPAWN_AGAIN_MS 1000
/* Messages of one worker in one wake-up: the others get their turn. */
#define ROUND_MESSAGES 64
/* While a guest waits for a handover: each takes a few microseconds. */
#define ROUND_MESSAGES_HANDOVER 256

static struct worker *find_worker(struct front *front, uint32_t number)
{
	for (size_t i = 0; i < front->n_workers; i++)
		if (front->workers[i].state != WORKER_NONE && front->workers[i].number == number)
			return &front->workers[i];
	return NULL;
}

static size_t count_workers(const struct front *front, enum worker_state state)
{
	size_t n = 0;

	for (size_t i = 0; i < front->n_workers; i++)
		n += front->workers[i].state == state;
	return n;
}

/* false: one is being started, or can't be. */
static bool spawn_successor(struct front *front)
{
	for (size_t i = 0; i < front->n_devices; i++) {
		struct device *device = &front->devices[i];

		if (!handover_wants_worker(device))
			continue;
		if (front->is_spawning || front->now < front->spawn_at)
			return false;
		front->is_spawning = front_request_spawn(front, false, i + 1);
		if (front->is_spawning)
			device->handover.phase = HANDOVER_STARTING;
		return false;
	}
	return true;
}

/* Successors are no spares, neither ready nor coming. */
static size_t count_coming(const struct front *front)
{
	size_t n = 0;

	for (size_t i = 0; i < front->n_workers; i++)
		n += front->workers[i].state == WORKER_STARTING && !front->workers[i].device;
	return n;
}

void workers_replenish(struct front *front)
{
	size_t n_wanted = 1, n_coming;

	if (!spawn_successor(front))
		return;

	for (size_t i = 0; i < front->n_devices; i++)
		n_wanted += device_wants_worker(&front->devices[i]);
	/* One that was started for a front-end which has left by now. */
	if (count_workers(front, WORKER_SPARE) > n_wanted)
		worker_dismiss(workers_take_spare(front), front);
	n_coming = count_coming(front) + count_workers(front, WORKER_SPARE);
	if (n_coming >= n_wanted || front->is_spawning || front->now < front->spawn_at)
		return;
	front->is_spawning = front_request_spawn(front, front->keeps_program, 0);
}

struct worker *workers_take_spare(struct front *front)
{
	for (size_t i = 0; i < front->n_workers; i++)
		if (front->workers[i].state == WORKER_SPARE)
			return &front->workers[i];
	return NULL;
}

static size_t worker_index(const struct front *front, const struct worker *worker)
{
	return (size_t)(worker - front->workers);
}

/* A device whose handover still waits for this worker. */
static struct device *successor_of(struct front *front, uint64_t token)
{
	struct device *device;

	if (token == 0 || token > front->n_devices)
		return NULL;
	device = &front->devices[token - 1];
	return device->handover.phase == HANDOVER_STARTING && !device->handover.successor ? device
											  : NULL;
}

void workers_spawned(struct front *front, const struct workers_spawned *spawned)
{
	struct worker *worker = NULL;
	int r;

	front->is_spawning = false;
	for (size_t i = 0; i < front->n_workers && !worker; i++)
		if (front->workers[i].state == WORKER_NONE)
			worker = &front->workers[i];
	if (!worker && front->n_workers < front->n_workers_max)
		worker = &front->workers[front->n_workers++];
	if (!worker) {
		/* The spawner has no more workers than there are entries here. */
		close(spawned->channel);
		close(spawned->buffer);
		front->exit_code = EX_SOFTWARE;
		return;
	}
	*worker = (struct worker){
		.state = WORKER_STARTING,
		.number = spawned->number,
		.pid = spawned->pid,
		.started = front->now,
		.program = spawned->program,
		.channel = spawned->channel,
		.buffer = spawned->buffer,
		.buffer_size = spawned->buffer_size,
		.device = successor_of(front, spawned->token),
		.deadline = front->now + STARTING_MS,
	};
	if (worker->device)
		handover_started(worker->device, worker);
	r = front_watch(front, EPOLL_CTL_ADD, worker->channel, EPOLLIN, FRONT_EVENT_WORKER,
			worker_index(front, worker));
	if (r < 0) {
		log_event(LOG_ERR, LOG_NO_VM, "worker %" PRIu32 " cannot be heard: %s",
			  worker->number, strerror(-r));
		worker_kill(worker, front);
	}
	workers_replenish(front);
}

void workers_not_spawned(struct front *front, int error, uint64_t token)
{
	struct device *device = successor_of(front, token);

	front->is_spawning = false;
	front->spawn_at = front->now + SPAWN_AGAIN_MS;
	if (device)
		handover_not_started(device, error);
	/* As many workers as there may be: one that leaves makes room. */
	front->is_full = error == EAGAIN;
	if (front->is_full)
		return;
	log_event(LOG_ERR, LOG_NO_VM, "cannot start a worker: %s", strerror(error));
	if (!front->has_served)
		front->exit_code = EX_OSERR;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void leave(struct worker *worker, struct front *front)
{
	if (worker->state == WORKER_ASSIGNED)
		query_worker_left(worker->device, worker);
	close_fd(&worker->channel);
	close_fd(&worker->buffer);
	worker->state = WORKER_LEAVING;
	worker->deadline = front->now + LEAVING_MS;
}

static void stop(struct worker *worker, struct front *front)
{
	worker->is_stopped = true;
	front_request_stop(front, worker->number);
}

/*
 * One worker of a device may still deliver; a front-end that comes and goes
 * takes no more of the workers that all devices share.
 */
void worker_dismiss(struct worker *worker, struct front *front)
{
	for (size_t i = 0; i < front->n_workers && worker->device; i++) {
		struct worker *other = &front->workers[i];

		if (other->state == WORKER_LEAVING && other->device == worker->device &&
		    !other->is_stopped)
			stop(other, front);
	}
	leave(worker, front);
}

void workers_renew(struct front *front)
{
	for (size_t i = 0; i < front->n_workers; i++) {
		struct worker *worker = &front->workers[i];

		if (worker->state == WORKER_STARTING || worker->state == WORKER_SUCCESSOR)
			worker->is_outdated = true;
		else if (worker->state == WORKER_SPARE)
			worker_dismiss(worker, front);
	}
}

void workers_clear_place(struct front *front, uint32_t place)
{
	for (size_t i = 0; i < front->n_workers; i++) {
		struct worker *worker = &front->workers[i];

		if (worker->state == WORKER_LEAVING && worker->was_assigned &&
		    worker->place == place && !worker->is_stopped)
			stop(worker, front);
	}
}

void workers_forget(struct front *front, const struct device *device)
{
	for (size_t i = 0; i < front->n_workers; i++)
		if (front->workers[i].device == device)
			front->workers[i].device = NULL;
}

/* A device loses its worker, or the one that was to be. */
static void lose(const struct worker *worker, enum worker_state state)
{
	if (!worker->device)
		return;
	if (state == WORKER_ASSIGNED)
		device_worker_died(worker->device);
	else if (state == WORKER_STARTING || state == WORKER_SUCCESSOR)
		handover_successor_died(worker->device, ECHILD);
}

void worker_kill(struct worker *worker, struct front *front)
{
	enum worker_state state = worker->state;

	leave(worker, front);
	worker->has_failed = true;
	stop(worker, front);
	lose(worker, state);
}

/* The channel's other end is closed: the process is ending, EXITED says how. */
static void on_closed(struct front *front, struct worker *worker)
{
	enum worker_state state = worker->state;

	leave(worker, front);
	worker->has_failed = true;
	lose(worker, state);
}

/*
 * The channel stays open until it is gone: a worker that stopped for a successor
 * and sees its channel end would take that for the end of the session.
 */
void worker_retire(struct worker *worker, struct front *front)
{
	front_watch(front, EPOLL_CTL_DEL, worker->channel, 0, FRONT_EVENT_WORKER,
		    worker_index(front, worker));
	close_fd(&worker->buffer);
	worker->state = WORKER_LEAVING;
	worker->deadline = front->now + LEAVING_MS;
}

void workers_stop(struct front *front, uint32_t number)
{
	struct worker *worker = find_worker(front, number);

	if (worker && worker->state == WORKER_LEAVING && !worker->is_stopped)
		stop(worker, front);
}

void worker_release(struct worker *worker, struct front *front)
{
	worker->device = NULL;
	if (worker->state != WORKER_SUCCESSOR)
		return;
	worker->state = WORKER_SPARE;
	if (worker->is_outdated)
		worker_dismiss(worker, front);
}

void workers_renew_program(struct front *front, uint32_t program)
{
	front->keeps_program = false;
	for (size_t i = 0; i < front->n_workers; i++)
		if (front->workers[i].state == WORKER_SPARE && front->workers[i].program != program)
			worker_dismiss(&front->workers[i], front);
	workers_replenish(front);
}

static uint64_t worker_cid(const struct worker *worker)
{
	return worker->was_assigned ? worker->cid : LOG_NO_VM;
}

static const char *signal_meaning(int signal)
{
	switch (signal) {
	case SIGSYS:
		return " (system call that its filter forbids)";
	case SIGBUS:
		return " (guest memory was truncated)";
	case SIGILL:
	case SIGTRAP:
		return " (it found itself in a state that cannot be)";
	case SIGKILL:
		return " (killed)";
	default:
		return "";
	}
}

static void log_end(const struct worker *worker, int status)
{
	uint64_t cid = worker_cid(worker);

	if (WIFSIGNALED(status))
		log_event(LOG_ERR | LOG_AS(LOG_ID_WORKER_ENDED), cid,
			  "worker %" PRIu32 " ended by signal %d%s", worker->number,
			  WTERMSIG(status), signal_meaning(WTERMSIG(status)));
	else
		log_event(LOG_ERR | LOG_AS(LOG_ID_WORKER_ENDED), cid,
			  "worker %" PRIu32 " ended with exit code %d", worker->number,
			  WEXITSTATUS(status));
}

void workers_exited(struct front *front, uint32_t number, int status)
{
	struct worker *worker = find_worker(front, number);

	if (!worker)
		return;
	if (worker->state != WORKER_LEAVING)
		on_closed(front, worker);
	if (worker->has_failed)
		log_end(worker, status);
	if (worker->device && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
		worker->device->n_sandbox_kills++;
	close_fd(&worker->channel);
	worker->state = WORKER_NONE;
	if (front->is_full)
		front->spawn_at = 0;
	front->is_full = false;
	/* It never served anybody: the next one may end the same way. */
	if (!worker->was_assigned && worker->has_failed) {
		front->spawn_at = front->now + SPAWN_AGAIN_MS;
		if (!front->has_served) {
			/* Nothing works yet: the reason is the host's, and was logged. */
			front->exit_code = WIFEXITED(status) && WEXITSTATUS(status)
						   ? WEXITSTATUS(status)
						   : EX_SOFTWARE;
		}
	}
	workers_replenish(front);
}

/*
 * Another vsockd-worker was installed than this front can talk with. What was there
 * when vsockd was started still does.
 */
static void on_other_version(struct front *front, struct worker *worker, uint32_t version)
{
	enum worker_state state = worker->state;

	if (!front->keeps_program || worker->device)
		log_event(LOG_ERR, worker_cid(worker),
			  "the vsockd-worker that is installed now speaks version %" PRIu32
			  " of the protocol between vsockd's processes, this vsockd speaks %d: "
			  "restart vsockd to use it",
			  version, MESSAGE_VERSION);
	front->keeps_program = true;
	leave(worker, front);
	worker->has_failed = true;
	stop(worker, front);
	if (worker->device && state == WORKER_STARTING)
		handover_successor_died(worker->device, EPROTONOSUPPORT);
}

static const char *on_ready(struct front *front, struct worker *worker, const Vsockd__Ready *ready)
{
	if (ready->version != MESSAGE_VERSION) {
		on_other_version(front, worker, ready->version);
		return NULL;
	}
	worker->state = worker->device ? WORKER_SUCCESSOR : WORKER_SPARE;
	if (!front->has_served) {
		log_event(LOG_NOTICE | LOG_AS(LOG_ID_READY), LOG_NO_VM, "ready: %zu VM%s",
			  front->n_devices, front->n_devices == 1 ? "" : "s");
		front_request_ready(front);
	}
	front->has_served = true;
	if (worker->is_outdated && !worker->device) {
		worker_dismiss(worker, front);
		workers_replenish(front);
		return NULL;
	}
	if (worker->device)
		handover_ready(worker->device);
	for (size_t i = 0; i < front->n_devices && worker->state == WORKER_SPARE; i++)
		if (device_wants_worker(&front->devices[i]))
			device_assign(&front->devices[i], worker);
	workers_replenish(front);
	return NULL;
}

static enum message_state message_state(const struct worker *worker)
{
	switch (worker->state) {
	case WORKER_STARTING:
		return MESSAGE_BEFORE_READY;
	case WORKER_SUCCESSOR:
		return MESSAGE_TAKING;
	case WORKER_ASSIGNED:
		return handover_states(worker->device);
	default:
		return MESSAGE_SPARE;
	}
}

/* The reason why the packet is not believed, or NULL. No message brings an fd. */
static const char *on_packet(struct front *front, struct worker *worker,
			     const struct channel_packet *packet)
{
	const Vsockd__Envelope *envelope;
	const char *reason;

	envelope = message_decode(packet, MESSAGE_TO_FRONT, message_state(worker), &reason);
	if (!envelope)
		return reason;
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_READY)
		return on_ready(front, worker, envelope->ready);
	return device_message(worker->device, worker, envelope);
}

static bool is_heard(const struct worker *worker)
{
	return worker->state != WORKER_NONE && worker->state != WORKER_LEAVING &&
	       !worker->is_paused;
}

static void receive(struct front *front, struct worker *worker)
{
	int n_max = worker->device && handover_is_busy(worker->device) ? ROUND_MESSAGES_HANDOVER
								       : ROUND_MESSAGES;

	for (int i = 0; i < n_max && is_heard(worker); i++) {
		struct channel_packet packet;
		const char *reason = "packet too long, or with fds";
		int r = channel_receive(worker->channel, &packet);

		if (r == CHANNEL_E_AGAIN)
			return;
		if (r == 0) {
			reason = on_packet(front, worker, &packet);
			if (packet.fd >= 0)
				close(packet.fd);
			if (!reason)
				continue;
		}
		if (r != 0 && r != CHANNEL_E_BROKEN) {
			on_closed(front, worker);
			return;
		}
		log_event(LOG_ERR, worker_cid(worker), "worker %" PRIu32 " is not believed: %s",
			  worker->number, reason);
		worker_kill(worker, front);
		return;
	}
}

static void watch_again(struct front *front, struct worker *worker)
{
	front_watch(front, EPOLL_CTL_MOD, worker->channel,
		    (worker->is_paused ? 0 : (uint32_t)EPOLLIN) |
			    (worker->wants_write ? (uint32_t)EPOLLOUT : 0),
		    FRONT_EVENT_WORKER, worker_index(front, worker));
}

static void set_wants_write(struct front *front, struct worker *worker, bool wants_write)
{
	if (worker->wants_write == wants_write)
		return;
	worker->wants_write = wants_write;
	worker->unread_at = front->now + UNREAD_MS;
	watch_again(front, worker);
}

void worker_pause(struct front *front, struct worker *worker, bool is_paused)
{
	if (worker->is_paused == is_paused)
		return;
	worker->is_paused = is_paused;
	watch_again(front, worker);
}

static void on_writable(struct front *front, struct worker *worker)
{
	set_wants_write(front, worker, false);
	if (worker->state == WORKER_ASSIGNED)
		device_worker_writable(worker->device);
	else if (worker->state == WORKER_SUCCESSOR)
		handover_successor_writable(worker->device);
}

void workers_event(struct front *front, struct worker *worker, uint32_t events)
{
	if (worker->state == WORKER_NONE || worker->state == WORKER_LEAVING)
		return;
	if (events & EPOLLOUT)
		on_writable(front, worker);
	/* One that is not heard for now has ended: nobody waits for what it said. */
	if (worker->is_paused && (events & (EPOLLHUP | EPOLLERR)))
		on_closed(front, worker);
	else if (events & ~(uint32_t)EPOLLOUT)
		receive(front, worker);
}

int worker_send_packet(struct front *front, struct worker *worker,
		       const struct channel_packet *packet)
{
	int r = channel_send(worker->channel, packet);

	if (r == CHANNEL_E_AGAIN)
		set_wants_write(front, worker, true);
	/* Too many fds in flight to workers: they read them soon. */
	if (r == -ETOOMANYREFS) {
		set_wants_write(front, worker, true);
		return CHANNEL_E_AGAIN;
	}
	return r;
}

int worker_send(struct front *front, struct worker *worker, uint32_t sequence,
		ProtobufCMessage *body, int fd)
{
	struct channel_packet packet;
	Vsockd__Envelope envelope;

	message_wrap(body, &envelope);
	envelope.sequence = sequence;
	message_encode(&envelope, fd, &packet);
	return worker_send_packet(front, worker, &packet);
}

static uint64_t deadline_of(const struct worker *worker)
{
	switch (worker->state) {
	case WORKER_STARTING:
	case WORKER_LEAVING:
		return worker->is_stopped ? UINT64_MAX : worker->deadline;
	case WORKER_SUCCESSOR:
	case WORKER_ASSIGNED:
		return worker->wants_write ? worker->unread_at : UINT64_MAX;
	default:
		return UINT64_MAX;
	}
}

static const char *what_is_late(const struct worker *worker)
{
	if (worker->state == WORKER_STARTING)
		return "start in time";
	return worker->state == WORKER_LEAVING ? "end in time" : "answer";
}

void workers_run_timers(struct front *front)
{
	for (size_t i = 0; i < front->n_workers; i++) {
		struct worker *worker = &front->workers[i];

		if (deadline_of(worker) > front->now)
			continue;
		log_event(LOG_ERR, worker_cid(worker), "worker %" PRIu32 " does not %s",
			  worker->number, what_is_late(worker));
		worker_kill(worker, front);
	}
}

uint64_t workers_deadline(const struct front *front)
{
	uint64_t deadline = UINT64_MAX;

	for (size_t i = 0; i < front->n_workers; i++)
		if (deadline_of(&front->workers[i]) < deadline)
			deadline = deadline_of(&front->workers[i]);
	return deadline;
}
