/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "broker/control.h"
#include "broker/front.h"
#include "broker/log.h"

/*
 * A worker is replaced by one that goes on where it stops. The successor is always
 * a process of its own, started for this: what is installed may be newer than the
 * spare. It is told all that the session holds while the worker still serves; only
 * then the worker stops, and what it tells of its device goes through here to the
 * successor, with the sockets, of which the front has the duplicates.
 *
 *	worker			front			successor
 *	 serves		Assign, HandoverPool, ... ->	 takes
 *	 serves		HandoverSocket, ... ->		 takes
 *	 stops		<- Handover
 *	 HandoverDevice, ...	->	->	->	 checks
 *	 Done			HandoverCheck ->
 *						<-	 Done
 *	 is killed		HandoverCommit ->	 serves
 *
 * Until HandoverCommit is sent the worker can be told to go on, and is when anything
 * goes wrong with the successor; nothing was touched meanwhile. From then on the
 * successor is the worker. A worker that dies before has died like any other.
 *
 * What the worker tells is a claim of the process of one guest, made to the next one
 * of the same guest, which checks it; what it says of sockets is checked here. What takes
 * long is done before: the guest waits from Handover to HandoverCommit.
 */

/* The guest and its programs wait that long at most for a handover that hangs. */
#define HANDOVER_MS 2000
/* For one of all the workers that there may be to end, if so many live. */
#define WANTED_MS 10000
/* For the successor to be told all that is known before. */
#define PREPARING_MS 10000
/* For a start of a ring, say, or a device state on its way, to come to its end. */
#define WAITING_MS 5000

int handover_begin(struct device *device, uint32_t client)
{
	if (!device->has_frontend)
		return -ENOTCONN;
	if (device->has_failed)
		return -EIO;
	if (device->handover.phase != HANDOVER_NONE)
		return -EALREADY;
	if (!device->worker)
		return -EAGAIN;
	if (device->restore.is_transferring || device->restore.is_dropped)
		return -EBUSY;
	device->handover = (struct handover){
		.phase = HANDOVER_WANTED,
		.client = client,
		.deadline = device->front->now + WANTED_MS,
	};
	workers_replenish(device->front);
	return 0;
}

bool handover_is_busy(const struct device *device)
{
	return device->handover.phase >= HANDOVER_PREPARING;
}

bool handover_wants_worker(const struct device *device)
{
	return device->handover.phase == HANDOVER_WANTED;
}

enum message_state handover_states(const struct device *device)
{
	const struct handover *handover = &device->handover;

	switch (handover->phase) {
	case HANDOVER_MOVING:
	case HANDOVER_CHECKING:
		/* What it said before it stopped comes first. */
		if (handover->is_frozen)
			return MESSAGE_FROZEN;
		return (enum message_state)(MESSAGE_ASSIGNED | MESSAGE_FROZEN);
	case HANDOVER_RESUMING:
		return (enum message_state)(MESSAGE_ASSIGNED | MESSAGE_FROZEN);
	default:
		return MESSAGE_ASSIGNED;
	}
}

/* ---- the end ---- */

static void end(struct device *device, int status)
{
	/* Not before the guest is served again: its end takes a processor for a while. */
	if (device->handover.phase == HANDOVER_COMMITTING)
		workers_stop(device->front, device->handover.former);
	device->handover.phase = HANDOVER_NONE;
	device->handover.status = status;
	/* Edge-triggered: a message that came meanwhile is not told again. */
	device->has_more = device->has_frontend;
	device_handover_done(device, status);
	control_replaced(device->front, device->handover.client, status);
}

static void drop_successor(struct device *device)
{
	struct worker *successor = device->handover.successor;

	device->handover.successor = NULL;
	if (!successor)
		return;
	if (device->handover.phase < HANDOVER_PREPARING) {
		worker_release(successor, device->front);
		return;
	}
	/* It may be the worker's death, or nobody's fault: no line in the log. */
	successor->device = NULL;
	worker_retire(successor, device->front);
	workers_stop(device->front, successor->number);
}

/* The worker has not stopped, or is no more: nothing is to be told to it. */
static void give_up(struct device *device, int status)
{
	if (handover_is_busy(device))
		sync_forget(device);
	drop_successor(device);
	end(device, status);
}

/* It has stopped, or is about to. */
static void resume(struct device *device, int status)
{
	drop_successor(device);
	device->handover.sequence = device->sync.sequence;
	device->handover.phase = HANDOVER_RESUMING;
	device->handover.status = status;
	device->handover.has_pending = false;
	worker_pause(device->front, device->worker, false);
	sync_tell(device, STEP_HANDOVER_RESUME, false);
}

static void fail(struct device *device, int status)
{
	if (device->handover.phase == HANDOVER_MOVING ||
	    device->handover.phase == HANDOVER_CHECKING)
		resume(device, status);
	else
		give_up(device, status);
}

void handover_worker_died(struct device *device)
{
	if (device->handover.phase != HANDOVER_NONE)
		give_up(device, -ECHILD);
}

/* What the guest sent is still to be delivered: the worker goes on before it is dismissed. */
void handover_cancel(struct device *device)
{
	bool has_stopped = device->handover.phase == HANDOVER_MOVING ||
			   device->handover.phase == HANDOVER_CHECKING;

	if (device->handover.phase == HANDOVER_NONE)
		return;
	if (has_stopped)
		sync_tell(device, STEP_HANDOVER_RESUME, false);
	give_up(device, -ECANCELED);
}

/* ---- the successor ---- */

void handover_started(struct device *device, struct worker *worker)
{
	device->handover.successor = worker;
}

void handover_not_started(struct device *device, int error)
{
	if (error == EAGAIN)
		device->handover.phase = HANDOVER_WANTED;
	else
		give_up(device, -error);
}

void handover_successor_died(struct device *device, int error)
{
	device->handover.successor = NULL;
	fail(device, -error);
	device_update(device);
}

static int give_socket(struct device *device, uint32_t endpoint)
{
	Vsockd__HandoverSocket socket = VSOCKD__HANDOVER_SOCKET__INIT;

	socket.endpoint = endpoint;
	return worker_send(device->front, device->handover.successor, 0, &socket.base,
			   device->endpoints.all[endpoint].fd);
}

/*
 * Meanwhile the worker may be done with some, and then the successor closes what nobody
 * claims; but it gets none, since nothing is told to it.
 */
int handover_give_sockets(struct device *device)
{
	struct handover *handover = &device->handover;
	int r = 0;

	for (; r == 0 && handover->next_socket < device->endpoints.n_max;
	     handover->next_socket += r == 0)
		if (endpoint_is_at_worker(&device->endpoints.all[handover->next_socket]))
			r = give_socket(device, handover->next_socket);
	return r;
}

void handover_ready(struct device *device)
{
	device->handover.phase = HANDOVER_WAITING;
	device->handover.deadline = device->front->now + WAITING_MS;
	handover_update(device);
}

/* No message, no state and no connection is half told. */
static bool can_begin(const struct device *device)
{
	return device_is_settled(device) && !device->sync.has_operation &&
	       !device->restore.is_transferring && !device->restore.is_dropped;
}

void handover_update(struct device *device)
{
	struct handover *handover = &device->handover;
	bool is_late = handover->deadline <= device->front->now;

	if (handover->phase == HANDOVER_WANTED && is_late)
		give_up(device, -EAGAIN);
	if (handover->phase == HANDOVER_PREPARING && is_late) {
		device_log(device, LOG_ERR, "worker does not answer");
		worker_kill(handover->successor, device->front);
	}
	if (handover->phase != HANDOVER_WAITING)
		return;
	if (!can_begin(device)) {
		if (is_late)
			give_up(device, -EBUSY);
		return;
	}
	handover->successor->was_assigned = true;
	handover->successor->place = device->index;
	handover->deadline = device->front->now + PREPARING_MS;
	handover->next_socket = 0;
	handover->successor->cid = device->configuration->guest_cid;
	handover->phase = HANDOVER_PREPARING;
	sync_prepare_successor(device);
}

uint64_t handover_deadline(const struct device *device)
{
	const struct handover *handover = &device->handover;

	if (handover->phase != HANDOVER_WANTED && handover->phase != HANDOVER_WAITING &&
	    handover->phase != HANDOVER_PREPARING)
		return UINT64_MAX;
	return handover->deadline;
}

struct worker *handover_late(const struct device *device)
{
	const struct handover *handover = &device->handover;

	if (handover->has_pending || (device->sync.is_of_successor && handover->successor))
		return handover->successor;
	return device->worker;
}

/* ---- what the worker tells ---- */

/* Each names its socket once, one that it has. */
static const char *check_endpoint(struct device *device, const struct handover_claim *claim)
{
	struct endpoint *endpoint;

	if (claim->endpoint >= device->endpoints.n_max)
		return "a connection handed over with no such endpoint";
	endpoint = &device->endpoints.all[claim->endpoint];
	if (!endpoint_is_at_worker(endpoint) &&
	    (endpoint->state != ENDPOINT_RESETTING || claim->has_socket))
		return "a connection handed over with an endpoint that is not open";
	if (endpoint->is_handed)
		return "two connections handed over with one endpoint";
	endpoint->is_handed = true;
	return NULL;
}

static const char *check_connection(struct device *device, const struct handover_claim *claim)
{
	if (claim->index >= 2 * device->endpoints.n_max)
		return "a connection handed over with a number out of range";
	/* So an answer that is still to come finds who asked. */
	if (claim->awaits_answer != (device->endpoints.requests[claim->index] != ENDPOINT_NONE))
		return "a connection handed over that awaits another answer than the front";
	if (!claim->has_endpoint)
		return claim->has_socket ? "a connection handed over with a socket of nobody"
					 : NULL;
	return check_endpoint(device, claim);
}

static const char *check_connections(struct device *device, const Vsockd__HandoverConnections *told)
{
	const char *reason = NULL;

	if (told->n > HANDOVER_CLAIMS_MAX)
		return "more connections handed over at once than there may be";
	for (uint32_t i = 0; i < told->n && !reason; i++) {
		const struct handover_claim claim = message_claim(told, i);

		reason = check_connection(device, &claim);
	}
	return reason;
}

/* Nothing that the front holds for this guest was left out. */
static const char *check_all_named(struct device *device)
{
	for (uint32_t i = 0; i < device->endpoints.n_max; i++) {
		const struct endpoint *endpoint = &device->endpoints.all[i];

		if ((endpoint_is_at_worker(endpoint) || endpoint->state == ENDPOINT_RESETTING) &&
		    !endpoint->is_handed)
			return "a handover without a connection that is open";
	}
	return NULL;
}

static void relay(struct device *device, const Vsockd__Envelope *envelope)
{
	struct handover *handover = &device->handover;

	message_encode(envelope, -1, &handover->pending);
	if (worker_send_packet(device->front, handover->successor, &handover->pending) !=
	    CHANNEL_E_AGAIN)
		return; /* or it is dead, and that is told elsewhere */
	handover->has_pending = true;
	worker_pause(device->front, device->worker, true);
}

const char *handover_message(struct device *device, const Vsockd__Envelope *envelope)
{
	struct handover *handover = &device->handover;
	const char *reason = NULL;

	if (handover->phase == HANDOVER_RESUMING)
		return NULL; /* said before it knew */
	if (handover->phase != HANDOVER_MOVING)
		return "a handover that nobody asked for";
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_HANDOVER_DEVICE) {
		if (handover->is_frozen)
			return "a device that is handed over twice";
		handover->is_frozen = true;
		/* The guest waits from here on. */
		device->sync.deadline = device->front->now + HANDOVER_MS;
		if (envelope->handover_device->is_quarantined != device->told_quarantine)
			return "a handover with another quarantine";
	}
	if (!handover->is_frozen)
		return "a handover that begins in the middle";
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_HANDOVER_CONNECTIONS)
		reason = check_connections(device, envelope->handover_connections);
	if (!reason)
		relay(device, envelope);
	return reason;
}

void handover_successor_writable(struct device *device)
{
	struct handover *handover = &device->handover;

	if (handover->has_pending) {
		if (worker_send_packet(device->front, handover->successor, &handover->pending) ==
		    CHANNEL_E_AGAIN)
			return;
		handover->has_pending = false;
		worker_pause(device->front, device->worker, false);
	}
	sync_run(device);
}

const char *handover_done(struct device *device, const Vsockd__Done *done, bool *ret_is_stale)
{
	const struct handover *handover = &device->handover;

	/* It had told all when it was told to go on. */
	*ret_is_stale =
		handover->phase == HANDOVER_RESUMING && done->sequence == handover->sequence;
	if (handover->phase == HANDOVER_MOVING && done->status == 0)
		return handover->is_frozen ? check_all_named(device) : "a handover of nothing";
	return NULL;
}

/* ---- one step after the other ---- */

/* The clock of the front's wake-ups is too coarse for this. */
static uint64_t now_us(void)
{
	struct timespec now = {0};

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void move(struct device *device)
{
	device->handover.phase = HANDOVER_MOVING;
	device->handover.began_us = now_us();
	device->handover.is_frozen = false;
	for (uint32_t i = 0; i < device->endpoints.n_max; i++)
		device->endpoints.all[i].is_handed = false;
	sync_tell(device, STEP_HANDOVER, false);
}

/* It was told to serve: from here on there is no way back. */
static void replace(struct device *device)
{
	struct handover *handover = &device->handover;
	struct worker *former = device->worker, *successor = handover->successor;
	int buffer = successor->buffer;

	handover->phase = HANDOVER_COMMITTING;
	handover->successor = NULL;
	handover->former = former->number;
	device->worker = successor;
	device->sync.is_of_successor = false;
	device->told_suspended = handover->told_suspended;
	successor->state = WORKER_ASSIGNED;
	/* The buffers with unsent bytes go along; its own were never used. */
	successor->buffer = former->buffer;
	successor->buffer_size = former->buffer_size;
	former->buffer = buffer;
	query_worker_replaced(device, former);
	worker_retire(former, device->front);
}

/* All that the guest waited, and at each end a message between the processes. */
static void count_pause(struct device *device)
{
	static const uint32_t bounds[] = PAUSES_US;
	uint64_t pause = now_us() - device->handover.began_us;
	uint32_t bucket = 0;

	while (bucket < PAUSES_BUCKETS - 1 && pause > bounds[bucket])
		bucket++;
	device->pauses.n[bucket]++;
	device->pauses.us += pause;
	device->handover.pause_us = pause;
}

void handover_steps_done(struct device *device, int status)
{
	switch (device->handover.phase) {
	case HANDOVER_PREPARING:
		if (status == 0)
			move(device);
		else
			give_up(device, status);
		return;
	case HANDOVER_MOVING:
		if (status == 0) {
			device->handover.phase = HANDOVER_CHECKING;
			sync_tell(device, STEP_HANDOVER_CHECK, true);
		} else {
			give_up(device, status); /* it has not stopped */
		}
		return;
	case HANDOVER_CHECKING:
		if (status != 0)
			resume(device, status);
		else if (sync_tell(device, STEP_HANDOVER_COMMIT, true))
			replace(device);
		else /* it has read all that was sent: it is dead, or will not be of use */
			resume(device, -ECHILD);
		return;
	case HANDOVER_COMMITTING:
		count_pause(device);
		workers_renew_program(device->front, device->worker->program);
		end(device, status);
		return;
	default:
		end(device, device->handover.status);
	}
}

const char *handover_reason(int status)
{
	switch (status) {
	case -EBADMSG:
		return "what the worker said of its device is not believed";
	case -ECHILD:
		return "one of the two workers died";
	case -EAGAIN:
		return "there are as many workers as there may be, some of which still deliver";
	case -EBUSY:
		return "the device is busy";
	case -ENOSPC:
		return "the limits of this VM were larger when its session began";
	case -EPROTONOSUPPORT:
		return "the installed vsockd-worker is of another version";
	case -ECANCELED:
		return "the session ended, or was restored";
	default:
		return strerror(-status);
	}
}

void device_handover_done(struct device *device, int status)
{
	uint64_t cid = device->configuration->guest_cid;

	/* No guest brings this about: it is not one of the lines that are counted. */
	if (status == 0)
		log_event(LOG_NOTICE | LOG_AS(LOG_ID_WORKER_REPLACED), cid,
			  "worker %" PRIu32 " replaced by worker %" PRIu32 " in %" PRIu64
			  " us, nothing lost",
			  device->handover.former, device->worker->number,
			  device->handover.pause_us);
	else
		log_event(LOG_WARNING, cid, "worker not replaced: %s", handover_reason(status));
}
