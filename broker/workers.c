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
/* After a start that failed: the reason seldom goes away at once. */
#define SPAWN_AGAIN_MS 1000
/* Messages of one worker in one wake-up: the others get their turn. */
#define ROUND_MESSAGES 64

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

void workers_replenish(struct front *front)
{
	size_t n_wanted = 1, n_coming;

	for (size_t i = 0; i < front->n_devices; i++)
		n_wanted += device_wants_worker(&front->devices[i]);
	/* One that was started for a front-end which has left by now. */
	if (count_workers(front, WORKER_SPARE) > n_wanted)
		worker_dismiss(workers_take_spare(front), front);
	n_coming = count_workers(front, WORKER_STARTING) + count_workers(front, WORKER_SPARE);
	if (n_coming >= n_wanted || front->is_spawning || front->now < front->spawn_at)
		return;
	front->is_spawning = front_request_spawn(front);
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

void workers_spawned(struct front *front, uint32_t number, uint32_t pid, int channel)
{
	struct worker *worker = NULL;

	front->is_spawning = false;
	for (size_t i = 0; i < front->n_workers && !worker; i++)
		if (front->workers[i].state == WORKER_NONE)
			worker = &front->workers[i];
	if (!worker && front->n_workers < front->n_workers_max)
		worker = &front->workers[front->n_workers++];
	if (!worker) {
		/* The spawner has no more workers than there are entries here. */
		close(channel);
		front->exit_code = EX_SOFTWARE;
		return;
	}
	*worker = (struct worker){
		.state = WORKER_STARTING,
		.number = number,
		.pid = pid,
		.started = front->now,
		.channel = channel,
		.deadline = front->now + STARTING_MS,
	};
	if (front_watch(front, EPOLL_CTL_ADD, channel, EPOLLIN, FRONT_EVENT_WORKER,
			worker_index(front, worker)) < 0)
		worker_kill(worker, front);
	workers_replenish(front);
}

void workers_not_spawned(struct front *front, int error)
{
	front->is_spawning = false;
	front->spawn_at = front->now + SPAWN_AGAIN_MS;
	/* As many workers as there may be: one that leaves makes room. */
	if (error == EAGAIN)
		return;
	log_event(LOG_ERR, LOG_NO_VM, "cannot start a worker: %s", strerror(error));
	if (!front->has_served)
		front->exit_code = EX_OSERR;
}

static void leave(struct worker *worker, struct front *front)
{
	if (worker->state == WORKER_ASSIGNED)
		query_worker_left(worker->device, worker);
	if (worker->channel >= 0)
		close(worker->channel);
	worker->channel = -1;
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

		if (worker->state == WORKER_STARTING)
			worker->is_too_small = true;
		else if (worker->state == WORKER_SPARE)
			worker_dismiss(worker, front);
	}
}

void workers_forget(struct front *front, const struct device *device)
{
	for (size_t i = 0; i < front->n_workers; i++)
		if (front->workers[i].device == device)
			front->workers[i].device = NULL;
}

void worker_kill(struct worker *worker, struct front *front)
{
	struct device *device = worker->state == WORKER_ASSIGNED ? worker->device : NULL;

	leave(worker, front);
	worker->has_failed = true;
	stop(worker, front);
	if (device)
		device_worker_died(device);
}

/* The channel's other end is closed: the process is ending, EXITED says how. */
static void on_closed(struct front *front, struct worker *worker)
{
	struct device *device = worker->state == WORKER_ASSIGNED ? worker->device : NULL;

	leave(worker, front);
	worker->has_failed = true;
	if (device)
		device_worker_died(device);
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
		log_event(LOG_ERR, cid, "worker %" PRIu32 " ended by signal %d%s", worker->number,
			  WTERMSIG(status), signal_meaning(WTERMSIG(status)));
	else
		log_event(LOG_ERR, cid, "worker %" PRIu32 " ended with exit code %d",
			  worker->number, WEXITSTATUS(status));
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
	worker->state = WORKER_NONE;
	/* It never served anybody: the next one may end the same way. */
	if (!worker->was_assigned) {
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

static const char *on_ready(struct front *front, struct worker *worker, const Vsockd__Ready *ready)
{
	if (ready->version != MESSAGE_VERSION)
		return "Ready of another version";
	worker->state = WORKER_SPARE;
	if (!front->has_served)
		log_event(LOG_NOTICE, LOG_NO_VM, "ready: %zu VM%s", front->n_devices,
			  front->n_devices == 1 ? "" : "s");
	front->has_served = true;
	if (worker->is_too_small) {
		worker_dismiss(worker, front);
		workers_replenish(front);
		return NULL;
	}
	for (size_t i = 0; i < front->n_devices; i++) {
		if (device_wants_worker(&front->devices[i])) {
			device_assign(&front->devices[i], worker);
			break;
		}
	}
	workers_replenish(front);
	return NULL;
}

static enum message_state message_state(const struct worker *worker)
{
	switch (worker->state) {
	case WORKER_STARTING:
		return MESSAGE_BEFORE_READY;
	case WORKER_ASSIGNED:
		return MESSAGE_ASSIGNED;
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
	return device_message(worker->device, envelope);
}

static void receive(struct front *front, struct worker *worker)
{
	for (int i = 0; i < ROUND_MESSAGES && worker->channel >= 0; i++) {
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

static void set_wants_write(struct front *front, struct worker *worker, bool wants_write)
{
	if (worker->wants_write == wants_write)
		return;
	worker->wants_write = wants_write;
	front_watch(front, EPOLL_CTL_MOD, worker->channel,
		    EPOLLIN | (wants_write ? (uint32_t)EPOLLOUT : 0), FRONT_EVENT_WORKER,
		    worker_index(front, worker));
}

void workers_event(struct front *front, struct worker *worker, uint32_t events)
{
	if (worker->channel < 0)
		return;
	if (events & EPOLLOUT) {
		set_wants_write(front, worker, false);
		if (worker->state == WORKER_ASSIGNED)
			device_worker_writable(worker->device);
	}
	if (events & ~(uint32_t)EPOLLOUT)
		receive(front, worker);
}

int worker_send(struct front *front, struct worker *worker, const Vsockd__Envelope *envelope,
		int fd)
{
	struct channel_packet packet;
	int r;

	message_encode(envelope, fd, &packet);
	r = channel_send(worker->channel, &packet);
	if (r == CHANNEL_E_AGAIN)
		set_wants_write(front, worker, true);
	/* Too many fds in flight to workers: they read them soon. */
	if (r == -ETOOMANYREFS) {
		set_wants_write(front, worker, true);
		return CHANNEL_E_AGAIN;
	}
	return r;
}

void workers_run_timers(struct front *front)
{
	for (size_t i = 0; i < front->n_workers; i++) {
		struct worker *worker = &front->workers[i];

		if ((worker->state != WORKER_STARTING && worker->state != WORKER_LEAVING) ||
		    worker->is_stopped || worker->deadline > front->now)
			continue;
		log_event(LOG_ERR, worker_cid(worker), "worker %" PRIu32 " does not %s in time",
			  worker->number, worker->state == WORKER_STARTING ? "start" : "end");
		worker_kill(worker, front);
	}
}

uint64_t workers_deadline(const struct front *front)
{
	uint64_t deadline = UINT64_MAX;

	for (size_t i = 0; i < front->n_workers; i++) {
		const struct worker *worker = &front->workers[i];

		if ((worker->state == WORKER_STARTING || worker->state == WORKER_LEAVING) &&
		    !worker->is_stopped && worker->deadline < deadline)
			deadline = worker->deadline;
	}
	return deadline;
}
