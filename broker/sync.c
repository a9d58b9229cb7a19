/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "broker/front.h"
#include "broker/log.h"

/*
 * Commands take microseconds, mapping memory a few milliseconds. A worker that
 * was made to block, by an fd of its own front-end, is replaced then.
 */
#define COMMAND_MS 5000

/*
 * A new start for each worker (splitmix64 from a seed of the kernel's): a guest
 * that still knows ports of a former life is not met under the same ones.
 */
static uint32_t next_first_port(struct front *front)
{
	uint64_t mixed;

	front->seed += UINT64_C(0x9e3779b97f4a7c15);
	mixed = (front->seed ^ front->seed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	return (uint32_t)(mixed >> 32);
}

/* Who is told, and answers. */
static struct worker *target(const struct device *device)
{
	return device->sync.is_of_successor ? device->handover.successor : device->worker;
}

bool sync_is_idle(const struct device *device)
{
	return device->sync.next_step == device->sync.n_steps;
}

static void add_step(struct sync *sync, enum step_kind kind, uint32_t number)
{
	sync->steps[sync->n_steps++] = (struct step){kind, number};
}

static void clear_steps(struct sync *sync)
{
	sync->is_of_successor = false;
	sync->n_steps = 0;
	sync->next_step = 0;
	sync->is_sent = false;
	sync->status = 0;
	sync->value = 0;
	sync->has_value = false;
}

static void add_ring(struct sync *sync, const struct session *session, uint32_t ring)
{
	const struct session_ring *state = &session->rings[ring];

	if (state->fds[SESSION_CALL] >= 0)
		add_step(sync, STEP_RING_CALL, ring);
	if (state->fds[SESSION_ERR] >= 0)
		add_step(sync, STEP_RING_ERROR, ring);
	if (state->is_enabled)
		add_step(sync, STEP_RING_ENABLE, ring);
	if (state->is_started)
		add_step(sync, STEP_RING_START, ring);
}

static uint32_t n_port_ranges(const struct device *device)
{
	const struct port_filter *filter = &device->limits.incoming;

	return filter->n_denied + filter->n_allowed;
}

static void add_limits(struct device *device)
{
	add_step(&device->sync, STEP_LIMITS, 0);
	for (uint32_t i = 0; i < n_port_ranges(device); i++)
		add_step(&device->sync, STEP_PORT_RANGE, i);
}

static void add_session(struct device *device, enum step_kind own)
{
	const struct session *session = &device->session;
	struct sync *sync = &device->sync;

	add_step(sync, STEP_RING_JOURNAL, 0);
	if (session->has_features)
		add_step(sync, STEP_FEATURES, 0);
	if (session->log.fd >= 0)
		add_step(sync, STEP_LOG_SET, 0);
	if (session->log.event_fd >= 0)
		add_step(sync, STEP_LOG_FD, 0);
	if (own != STEP_NONE)
		add_step(sync, own, 0);
	/* Before any ring is started. */
	if (device_is_suspended(device))
		add_step(sync, STEP_SUSPEND, 0);
	if (device->capture.number != 0)
		add_step(sync, STEP_CAPTURE, 0);
	for (uint32_t i = 0; i < session->n_regions; i++)
		add_step(sync, STEP_MEMORY_STAGE, i);
	add_step(sync, STEP_MEMORY_COMMIT, 0);
	for (uint32_t i = 0; i < SESSION_RINGS; i++)
		add_ring(sync, session, i);
}

/* A quarantine comes with what the worker tells. */
void sync_prepare_successor(struct device *device)
{
	clear_steps(&device->sync);
	device->sync.is_of_successor = true;
	add_step(&device->sync, STEP_ASSIGN, 0);
	add_limits(device);
	add_session(device, STEP_HANDOVER_POOL);
	sync_run(device);
}

bool sync_tell(struct device *device, enum step_kind kind, bool is_of_successor)
{
	clear_steps(&device->sync);
	device->sync.is_of_successor = is_of_successor;
	add_step(&device->sync, kind, 0);
	sync_run(device);
	return device->sync.is_sent;
}

void sync_forget(struct device *device)
{
	clear_steps(&device->sync);
}

void sync_begin(struct device *device)
{
	const struct session *session = &device->session;
	struct sync *sync = &device->sync;

	clear_steps(sync);
	device_renew_limits(device);
	add_step(sync, STEP_ASSIGN, 0);
	add_limits(device);
	if (device->has_failed) {
		for (uint32_t i = 0; i < SESSION_RINGS; i++)
			if (session->rings[i].fds[SESSION_ERR] >= 0)
				add_step(sync, STEP_RING_ERROR, i);
		add_step(sync, STEP_FAIL, 0);
		sync_run(device);
		return;
	}
	add_session(device, restore_holds(device) ? STEP_QUARANTINE : STEP_NONE);
	if (sync->has_operation && sync->operation.kind == STEP_STATE)
		add_step(sync, STEP_STATE, sync->operation.number);
	/*
	 * The worker that was to stop the ring is gone. Where it was, the used
	 * ring says; a new one looks there and stops at once.
	 */
	if (sync->has_operation && sync->operation.kind == STEP_RING_STOP &&
	    device->was_running[sync->operation.number]) {
		add_step(sync, STEP_RING_START, sync->operation.number);
		add_step(sync, STEP_RING_STOP, sync->operation.number);
	}
	sync_run(device);
}

static void finish_operation(struct device *device, int status, uint32_t value)
{
	device->sync.has_operation = false;
	device_complete(device, status, value);
}

/* A ring that no worker ran stands where the front-end set it. */
static uint32_t operation_value(const struct device *device)
{
	const struct sync *sync = &device->sync;

	if (sync->has_value || sync->operation.kind != STEP_RING_STOP)
		return sync->value;
	return device->session.rings[sync->operation.number].base;
}

void sync_fail(struct device *device)
{
	struct sync *sync = &device->sync;

	clear_steps(sync);
	if (sync->has_operation)
		finish_operation(device, 0, operation_value(device));
}

static int send_region(struct device *device, const struct session_region *region, bool is_staged,
		       uint32_t sequence)
{
	Vsockd__MemoryAdd add = VSOCKD__MEMORY_ADD__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	add.sequence = sequence;
	add.guest_address = region->guest_address;
	add.size = region->size;
	add.user_address = region->user_address;
	add.mmap_offset = region->mmap_offset;
	add.alignment = region->alignment;
	add.is_staged = is_staged;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_MEMORY_ADD;
	envelope.memory_add = &add;
	return worker_send(device->front, target(device), &envelope, region->fd);
}

static int send_log_set(struct device *device, uint32_t sequence)
{
	const struct session_log *log = &device->session.log;
	Vsockd__LogSet set = VSOCKD__LOG_SET__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	set.sequence = sequence;
	set.size = log->size;
	set.mmap_offset = log->mmap_offset;
	set.alignment = log->alignment;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_LOG_SET;
	envelope.log_set = &set;
	return worker_send(device->front, target(device), &envelope, log->fd);
}

static int send_log_fd(struct device *device, uint32_t sequence)
{
	Vsockd__LogFd log_fd = VSOCKD__LOG_FD__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	log_fd.sequence = sequence;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_LOG_FD;
	envelope.log_fd = &log_fd;
	return worker_send(device->front, target(device), &envelope, device->session.log.event_fd);
}

static int send_ring_log(struct device *device, uint32_t ring, uint32_t sequence)
{
	Vsockd__RingLog log = VSOCKD__RING_LOG__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	log.sequence = sequence;
	log.ring = ring;
	log.is_logged = device->session.rings[ring].is_logged;
	log.log_address = device->session.rings[ring].log_address;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_LOG;
	envelope.ring_log = &log;
	return worker_send(device->front, target(device), &envelope, -1);
}

static int send_quarantine(struct device *device, uint32_t sequence)
{
	Vsockd__Quarantine quarantine = VSOCKD__QUARANTINE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	quarantine.sequence = sequence;
	quarantine.is_on = restore_holds(device);
	quarantine.sends_reset =
		device->restore.phase == RESTORE_WAITING && device->restore.sends_reset;
	quarantine.was_announced = quarantine.sends_reset && device->restore.was_announced;
	quarantine.used = device->restore.announced_used;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_QUARANTINE;
	envelope.quarantine = &quarantine;
	device->told_quarantine = quarantine.is_on;
	return worker_send(device->front, target(device), &envelope, -1);
}

static int send_suspend(struct device *device, uint32_t sequence)
{
	Vsockd__Suspend suspend = VSOCKD__SUSPEND__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	suspend.sequence = sequence;
	suspend.is_on = device_is_suspended(device);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_SUSPEND;
	envelope.suspend = &suspend;
	device->will_suspend = suspend.is_on;
	return worker_send(device->front, target(device), &envelope, -1);
}

/* As it is by now: the client may have left. */
static int send_capture(struct device *device, uint32_t sequence)
{
	const struct device_capture *wanted = &device->capture;
	Vsockd__Capture capture = VSOCKD__CAPTURE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	capture.sequence = sequence;
	capture.number = wanted->number;
	capture.payload_max = wanted->payload_max;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_CAPTURE;
	envelope.capture = &capture;
	device->will_capture = wanted->number;
	return worker_send(device->front, target(device), &envelope,
			   wanted->number != 0 ? wanted->fd : -1);
}

static int send_state(struct device *device, bool is_load, uint32_t sequence)
{
	Vsockd__StateSave save = VSOCKD__STATE_SAVE__INIT;
	Vsockd__StateLoad load = VSOCKD__STATE_LOAD__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	save.sequence = sequence;
	save.flags = (device->has_driver ? STATE_FLAG_DRIVER : 0) |
		     (device->had_event_ring ? STATE_FLAG_EVENT_RING : 0);
	load.sequence = sequence;
	if (is_load) {
		envelope.body_case = VSOCKD__ENVELOPE__BODY_STATE_LOAD;
		envelope.state_load = &load;
	} else {
		envelope.body_case = VSOCKD__ENVELOPE__BODY_STATE_SAVE;
		envelope.state_save = &save;
	}
	return worker_send(device->front, target(device), &envelope, device->session.state_fd);
}

static int send_ring_journal(struct device *device, uint32_t sequence)
{
	Vsockd__RingJournal journal = VSOCKD__RING_JOURNAL__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	journal.sequence = sequence;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_JOURNAL;
	envelope.ring_journal = &journal;
	return worker_send(device->front, target(device), &envelope, device->ring_journal);
}

static int send_memory_remove(struct device *device, uint32_t sequence)
{
	const struct session_region *region = &device->sync.removed;
	Vsockd__MemoryRemove remove = VSOCKD__MEMORY_REMOVE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	remove.sequence = sequence;
	remove.guest_address = region->guest_address;
	remove.size = region->size;
	remove.user_address = region->user_address;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_MEMORY_REMOVE;
	envelope.memory_remove = &remove;
	return worker_send(device->front, target(device), &envelope, -1);
}

static int send_assign(struct device *device, uint32_t sequence)
{
	Vsockd__Assign assign = VSOCKD__ASSIGN__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	assign.sequence = sequence;
	assign.guest_cid = device->configuration->guest_cid;
	assign.buffer_size = device->limits.tx_buffer_size;
	assign.max_connections = device->limits.max_connections;
	assign.max_handshakes = device->limits.max_handshakes;
	assign.first_port = next_first_port(device->front);
	assign.is_quiet = device->limits.is_quiet;
	assign.poll_us = device->limits.poll_us;
	assign.wait_ms = device->limits.wait_s * 1000;
	assign.message_size = device->front->message_size;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_ASSIGN;
	envelope.assign = &assign;
	return worker_send(device->front, target(device), &envelope, -1);
}

static int send_limits(struct device *device, uint32_t sequence)
{
	Vsockd__Limits limits = VSOCKD__LIMITS__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	limits.sequence = sequence;
	limits.bytes_per_second = device->limits.max_bandwidth;
	limits.buffer_memory = device->limits.max_buffer_memory;
	limits.n_ranges = n_port_ranges(device);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_LIMITS;
	envelope.limits = &limits;
	return worker_send(device->front, target(device), &envelope, -1);
}

static int send_port_range(struct device *device, uint32_t number, uint32_t sequence)
{
	const struct port_filter *filter = &device->limits.incoming;
	Vsockd__PortRange range = VSOCKD__PORT_RANGE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	const struct port_range *ports = number < filter->n_denied
						 ? &filter->denied[number]
						 : &filter->allowed[number - filter->n_denied];

	range.sequence = sequence;
	range.first = ports->first;
	range.last = ports->last;
	range.is_denied = number < filter->n_denied;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_PORT_RANGE;
	envelope.port_range = &range;
	return worker_send(device->front, target(device), &envelope, -1);
}

static int send_ring_start(struct device *device, uint32_t ring, uint32_t sequence)
{
	const struct session_ring *state = &device->session.rings[ring];
	Vsockd__RingStart start = VSOCKD__RING_START__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	start.sequence = sequence;
	start.ring = ring;
	start.num = state->num;
	start.desc = state->desc;
	start.used = state->used;
	start.avail = state->avail;
	start.ring_base = state->base;
	start.from_used_index = device->was_running[ring];
	start.is_logged = state->is_logged;
	start.log_address = state->log_address;
	start.in_band = notify_in_band(device, ring);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_START;
	envelope.ring_start = &start;
	return worker_send(device->front, target(device), &envelope, state->fds[SESSION_KICK]);
}

static int send_ring_enable(struct device *device, uint32_t ring, uint32_t sequence)
{
	Vsockd__RingEnable enable = VSOCKD__RING_ENABLE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	enable.sequence = sequence;
	enable.ring = ring;
	enable.is_enabled = device->session.rings[ring].is_enabled;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_ENABLE;
	envelope.ring_enable = &enable;
	return worker_send(device->front, target(device), &envelope, -1);
}

/* Messages of nothing but a sequence and a ring, and those of a sequence alone. */
static int send_ring_fd(struct device *device, uint32_t ring, bool is_call, uint32_t sequence)
{
	Vsockd__RingCall call = VSOCKD__RING_CALL__INIT;
	Vsockd__RingError error = VSOCKD__RING_ERROR__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	call.sequence = sequence;
	call.ring = ring;
	error.sequence = sequence;
	error.ring = ring;
	if (is_call) {
		envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_CALL;
		envelope.ring_call = &call;
	} else {
		envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_ERROR;
		envelope.ring_error = &error;
	}
	return worker_send(device->front, target(device), &envelope,
			   device->session.rings[ring].fds[is_call ? SESSION_CALL : SESSION_ERR]);
}

static int send_ring_stop(struct device *device, uint32_t ring, uint32_t sequence)
{
	Vsockd__RingStop stop = VSOCKD__RING_STOP__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	stop.sequence = sequence;
	stop.ring = ring;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_STOP;
	envelope.ring_stop = &stop;
	return worker_send(device->front, target(device), &envelope, -1);
}

static int send_pool(struct device *device, uint32_t sequence)
{
	Vsockd__HandoverPool pool = VSOCKD__HANDOVER_POOL__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	pool.sequence = sequence;
	pool.size = device->worker->buffer_size;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER_POOL;
	envelope.handover_pool = &pool;
	return worker_send(device->front, target(device), &envelope, device->worker->buffer);
}

/* Commands of a handover that are a sequence and nothing else, as that one is. */
static int send_handover(struct device *device, enum step_kind kind, uint32_t sequence)
{
	Vsockd__Handover handover = VSOCKD__HANDOVER__INIT;
	Vsockd__HandoverResume resume = VSOCKD__HANDOVER_RESUME__INIT;
	Vsockd__HandoverCheck check = VSOCKD__HANDOVER_CHECK__INIT;
	Vsockd__HandoverCommit commit = VSOCKD__HANDOVER_COMMIT__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	handover.sequence = sequence;
	resume.sequence = sequence;
	check.sequence = sequence;
	commit.sequence = sequence;
	switch (kind) {
	case STEP_HANDOVER:
		envelope.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER;
		envelope.handover = &handover;
		break;
	case STEP_HANDOVER_RESUME:
		envelope.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER_RESUME;
		envelope.handover_resume = &resume;
		break;
	case STEP_HANDOVER_CHECK:
		envelope.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER_CHECK;
		envelope.handover_check = &check;
		break;
	default:
		envelope.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER_COMMIT;
		envelope.handover_commit = &commit;
	}
	return worker_send(device->front, target(device), &envelope, -1);
}

static int send_ring_kick(struct device *device, uint32_t ring, uint32_t sequence)
{
	Vsockd__RingKick kick = VSOCKD__RING_KICK__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	kick.sequence = sequence;
	kick.ring = ring;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_KICK;
	envelope.ring_kick = &kick;
	return worker_send(device->front, device->worker, &envelope, -1);
}

static int send_bare(struct device *device, enum step_kind kind, uint32_t sequence)
{
	Vsockd__MemoryCommit commit = VSOCKD__MEMORY_COMMIT__INIT;
	Vsockd__Features features = VSOCKD__FEATURES__INIT;
	Vsockd__Reset reset = VSOCKD__RESET__INIT;
	Vsockd__Fail fail = VSOCKD__FAIL__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	commit.sequence = sequence;
	features.sequence = sequence;
	features.features = device->session.features;
	reset.sequence = sequence;
	fail.sequence = sequence;
	switch (kind) {
	case STEP_FEATURES:
		envelope.body_case = VSOCKD__ENVELOPE__BODY_FEATURES;
		envelope.features = &features;
		break;
	case STEP_MEMORY_COMMIT:
		envelope.body_case = VSOCKD__ENVELOPE__BODY_MEMORY_COMMIT;
		envelope.memory_commit = &commit;
		break;
	case STEP_RESET:
		envelope.body_case = VSOCKD__ENVELOPE__BODY_RESET;
		envelope.reset = &reset;
		break;
	default:
		envelope.body_case = VSOCKD__ENVELOPE__BODY_FAIL;
		envelope.fail = &fail;
	}
	return worker_send(device->front, target(device), &envelope, -1);
}

static int send_step(struct device *device, const struct step *step, uint32_t sequence)
{
	const struct session_region *region = &device->session.regions[step->number];

	switch (step->kind) {
	case STEP_ASSIGN:
		return send_assign(device, sequence);
	case STEP_LIMITS:
		return send_limits(device, sequence);
	case STEP_PORT_RANGE:
		return send_port_range(device, step->number, sequence);
	case STEP_RING_JOURNAL:
		return send_ring_journal(device, sequence);
	case STEP_MEMORY_STAGE:
		return send_region(device, region, true, sequence);
	case STEP_MEMORY_ADD:
		return send_region(device, region, false, sequence);
	case STEP_MEMORY_REMOVE:
		return send_memory_remove(device, sequence);
	case STEP_RING_CALL:
		return send_ring_fd(device, step->number, true, sequence);
	case STEP_RING_ERROR:
		return send_ring_fd(device, step->number, false, sequence);
	case STEP_RING_ENABLE:
		return send_ring_enable(device, step->number, sequence);
	case STEP_RING_START:
		return send_ring_start(device, step->number, sequence);
	case STEP_RING_STOP:
		return send_ring_stop(device, step->number, sequence);
	case STEP_SUSPEND:
		return send_suspend(device, sequence);
	case STEP_RING_KICK:
		return send_ring_kick(device, step->number, sequence);
	case STEP_RING_LOG:
		return send_ring_log(device, step->number, sequence);
	case STEP_LOG_SET:
		return send_log_set(device, sequence);
	case STEP_LOG_FD:
		return send_log_fd(device, sequence);
	case STEP_QUARANTINE:
		return send_quarantine(device, sequence);
	case STEP_CAPTURE:
		return send_capture(device, sequence);
	case STEP_STATE:
		return send_state(device, step->number != 0, sequence);
	case STEP_HANDOVER_POOL:
		return send_pool(device, sequence);
	case STEP_HANDOVER:
	case STEP_HANDOVER_RESUME:
	case STEP_HANDOVER_CHECK:
	case STEP_HANDOVER_COMMIT:
		return send_handover(device, step->kind, sequence);
	case STEP_FEATURES:
	case STEP_MEMORY_COMMIT:
	case STEP_RESET:
	case STEP_FAIL:
	case STEP_NONE:
		break;
	}
	return send_bare(device, step->kind, sequence);
}

/* Send the next step if none is under way. A dead worker is told of elsewhere. */
void sync_run(struct device *device)
{
	struct sync *sync = &device->sync;

	if (!target(device) || sync->is_sent || sync_is_idle(device))
		return;
	if (send_step(device, &sync->steps[sync->next_step], sync->sequence + 1) != 0)
		return;
	sync->sequence++;
	sync->is_sent = true;
	sync->deadline = device->front->now + COMMAND_MS;
}

static void note_done(struct device *device, const struct step *step, int status, uint32_t value)
{
	struct sync *sync = &device->sync;

	if (status != 0 && sync->status == 0)
		sync->status = status;
	if (step->kind == STEP_RING_START && status == 0) {
		device->was_running[step->number] = true;
		device->had_event_ring |= step->number == 2;
	}
	if (step->kind == STEP_SUSPEND)
		device->told_suspended = device->will_suspend;
	/* A successor is told once more when it serves; until then it may fail. */
	if (step->kind == STEP_CAPTURE && !sync->is_of_successor)
		device->told_capture = device->will_capture;
	if (step->kind == STEP_STATE && status == 0)
		restore_begin_transfer(device, step->number != 0);
	if (step->kind == STEP_RING_STOP) {
		device->was_running[step->number] = false;
		device->was_stopped[step->number] = true;
		device->stopped_at[step->number] = value;
		sync->value = value;
		sync->has_value = true;
	}
}

static void end_of_steps(struct device *device)
{
	struct sync *sync = &device->sync;
	int status = sync->status;
	uint32_t value = operation_value(device);

	clear_steps(sync);
	if (handover_is_busy(device))
		handover_steps_done(device, status);
	else if (sync->has_operation && sync->operation.kind != STEP_NONE)
		finish_operation(device, status, value);
	else if (status != 0)
		device_log(device, LOG_ERR, "worker cannot take over the device: %s",
			   strerror(-status));
	/* Edge-triggered: a message that came while the worker was told is not told again. */
	device->has_more = device->has_frontend;
	device_update(device);
}

/* Only the end of a ring has one: the base, which the front-end is to be told. */
static bool is_value(const struct device *device, const struct step *step, uint32_t value)
{
	if (step->kind != STEP_RING_STOP)
		return value == 0;
	return session_is_base(&device->session, step->number, value);
}

const char *sync_done(struct device *device, const struct worker *worker, const Vsockd__Done *done)
{
	struct sync *sync = &device->sync;
	const struct step *step;

	if (!sync->is_sent || worker != target(device) || done->sequence != sync->sequence)
		return "Done that nobody waits for";
	step = &sync->steps[sync->next_step];
	if (done->status > 0 || done->status < -4095 || !is_value(device, step, done->value))
		return "Done with a value out of range";
	note_done(device, step, done->status, done->value);
	sync->is_sent = false;
	sync->next_step++;
	if (sync_is_idle(device))
		end_of_steps(device);
	else
		sync_run(device);
	return NULL;
}

/* ---- what the session asks for ---- */

/*
 * While a worker is awaited, or being told everything, nothing is to be added:
 * the session is in its new state already, and all of it will be told.
 */
static int begin_operation(struct device *device, enum step_kind kind, uint32_t number)
{
	struct sync *sync = &device->sync;

	if (device->has_failed)
		return 0;
	sync->has_operation = true;
	sync->operation = (struct step){kind, number};
	if (!device->worker)
		return SESSION_E_PENDING;
	return 0;
}

static int one_step(struct device *device, enum step_kind kind, uint32_t number)
{
	int r;

	if (device->has_failed && kind == STEP_RING_STOP) {
		/* session_complete() gives the base, and may not be called from here. */
		device->sync.has_operation = true;
		device->sync.operation = (struct step){kind, number};
		return SESSION_E_PENDING;
	}
	r = begin_operation(device, kind, number);
	if (device->has_failed || r != 0)
		return r;
	add_step(&device->sync, kind, number);
	sync_run(device);
	return SESSION_E_PENDING;
}

static int on_features_set(void *context)
{
	return one_step(context, STEP_FEATURES, 0);
}

static int on_memory_replaced(void *context)
{
	struct device *device = context;
	int r = begin_operation(device, STEP_MEMORY_COMMIT, 0);

	if (device->has_failed || r != 0)
		return r;
	for (uint32_t i = 0; i < device->session.n_regions; i++)
		add_step(&device->sync, STEP_MEMORY_STAGE, i);
	add_step(&device->sync, STEP_MEMORY_COMMIT, 0);
	sync_run(device);
	return SESSION_E_PENDING;
}

static int on_region_added(void *context, const struct session_region *region)
{
	struct device *device = context;

	return one_step(device, STEP_MEMORY_ADD, (uint32_t)(region - device->session.regions));
}

static int on_region_removed(void *context, const struct session_region *region)
{
	struct device *device = context;

	device->sync.removed = *region;
	return one_step(device, STEP_MEMORY_REMOVE, 0);
}

/*
 * A front-end that goes on after a stop sets the base that it was given. Another
 * one is a new driver's: QEMU before 8.2 tells of a guest's reset by nothing else.
 */
static bool is_new_driver(struct device *device, uint32_t ring)
{
	bool is_new = device->was_stopped[ring] &&
		      device->session.rings[ring].base != device->stopped_at[ring];

	device->was_stopped[ring] = false;
	/* The rings that are still to start are its own: it has connections by then. */
	if (is_new)
		memset(device->was_stopped, 0, sizeof(device->was_stopped));
	return is_new;
}

static int on_ring_started(void *context, uint32_t ring)
{
	struct device *device = context;
	bool is_new = is_new_driver(device, ring);
	int r = begin_operation(device, STEP_RING_START, ring);

	if (is_new)
		device->has_driver = false;
	if (device->has_failed || r != 0)
		return r;
	if (is_new)
		add_step(&device->sync, STEP_RESET, 0);
	add_step(&device->sync, STEP_RING_START, ring);
	sync_run(device);
	return SESSION_E_PENDING;
}

static int on_ring_stopped(void *context, uint32_t ring)
{
	return one_step(context, STEP_RING_STOP, ring);
}

static int on_ring_kicked(void *context, uint32_t ring)
{
	return one_step(context, STEP_RING_KICK, ring);
}

static void on_backend_fd_set(void *context, int fd)
{
	notify_set_socket(context, fd);
}

static int on_ring_enabled(void *context, uint32_t ring)
{
	return one_step(context, STEP_RING_ENABLE, ring);
}

static int on_ring_fd_set(void *context, uint32_t ring, enum session_ring_fd which)
{
	return one_step(context, which == SESSION_CALL ? STEP_RING_CALL : STEP_RING_ERROR, ring);
}

static int on_ring_log_set(void *context, uint32_t ring)
{
	return one_step(context, STEP_RING_LOG, ring);
}

static int on_log_set(void *context)
{
	return one_step(context, STEP_LOG_SET, 0);
}

static int on_log_fd_set(void *context)
{
	return one_step(context, STEP_LOG_FD, 0);
}

/* A device without a worker for good has no state to give, and takes none. */
static int on_state_transfer(void *context, bool is_load)
{
	struct device *device = context;

	if (device->has_failed)
		return -EIO;
	return one_step(device, STEP_STATE, is_load);
}

static int on_state_check(void *context)
{
	struct device *device = context;

	if (!device->restore.is_transferring)
		return device->restore.result;
	device->restore.awaits_check = true;
	device->sync.has_operation = true;
	device->sync.operation = (struct step){STEP_NONE, 0};
	return SESSION_E_PENDING;
}

void sync_complete(struct device *device, int status)
{
	if (device->sync.has_operation)
		finish_operation(device, status, 0);
}

void sync_quarantine(struct device *device)
{
	if (!device_is_settled(device) || device->has_failed ||
	    device->told_quarantine == restore_holds(device))
		return;
	add_step(&device->sync, STEP_QUARANTINE, 0);
	sync_run(device);
}

void sync_suspension(struct device *device)
{
	if (!device_is_settled(device) || device->has_failed ||
	    device->told_suspended == device_is_suspended(device))
		return;
	add_step(&device->sync, STEP_SUSPEND, 0);
	sync_run(device);
}

void sync_capture(struct device *device)
{
	if (!device_is_settled(device) || device->has_failed ||
	    device->told_capture == device->capture.number)
		return;
	add_step(&device->sync, STEP_CAPTURE, 0);
	sync_run(device);
}

/* Ranges are told one by one: the list must not change before all were. */
void sync_limits(struct device *device)
{
	if (!device->owes_limits || !device_is_settled(device) || device->has_failed)
		return;
	device_renew_limits(device);
	add_limits(device);
	sync_run(device);
}

static int on_suspended(void *context)
{
	return one_step(context, STEP_SUSPEND, 0);
}

static void on_config_read(void *context)
{
	restore_config_read(context);
}

static int on_device_reset(void *context)
{
	struct device *device = context;

	device->has_driver = false;
	device->had_event_ring = false;
	notify_forget(device);
	/* The driver that was to be reset is no more. */
	restore_cancel(device);
	return one_step(device, STEP_RESET, 0);
}

const struct session_operations sync_operations = {
	.features_set = on_features_set,
	.memory_replaced = on_memory_replaced,
	.region_added = on_region_added,
	.region_removed = on_region_removed,
	.ring_started = on_ring_started,
	.ring_stopped = on_ring_stopped,
	.suspended = on_suspended,
	.ring_kicked = on_ring_kicked,
	.ring_enabled = on_ring_enabled,
	.ring_fd_set = on_ring_fd_set,
	.device_reset = on_device_reset,
	.ring_log_set = on_ring_log_set,
	.log_set = on_log_set,
	.log_fd_set = on_log_fd_set,
	.state_transfer = on_state_transfer,
	.state_check = on_state_check,
	.backend_fd_set = on_backend_fd_set,
	.config_read = on_config_read,
};
