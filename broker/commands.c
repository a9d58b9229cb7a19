/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/front.h"

/* The words for each step of sync.c: what the session holds, as messages to a worker. */

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

uint32_t command_port_ranges(const struct device *device)
{
	const struct port_filter *filter = &device->limits.incoming;

	return filter->n_denied + filter->n_allowed;
}

static int send_region(struct device *device, struct worker *worker,
		       const struct session_region *region, bool is_staged, uint32_t sequence)
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
	return worker_send(device->front, worker, &envelope, region->fd);
}

static int send_log_set(struct device *device, struct worker *worker, uint32_t sequence)
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
	return worker_send(device->front, worker, &envelope, log->fd);
}

static int send_log_fd(struct device *device, struct worker *worker, uint32_t sequence)
{
	Vsockd__LogFd log_fd = VSOCKD__LOG_FD__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	log_fd.sequence = sequence;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_LOG_FD;
	envelope.log_fd = &log_fd;
	return worker_send(device->front, worker, &envelope, device->session.log.event_fd);
}

static int send_ring_log(struct device *device, struct worker *worker, uint32_t ring,
			 uint32_t sequence)
{
	Vsockd__RingLog log = VSOCKD__RING_LOG__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	log.sequence = sequence;
	log.ring = ring;
	log.is_logged = device->session.rings[ring].is_logged;
	log.log_address = device->session.rings[ring].log_address;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_LOG;
	envelope.ring_log = &log;
	return worker_send(device->front, worker, &envelope, -1);
}

static int send_quarantine(struct device *device, struct worker *worker, uint32_t sequence)
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
	return worker_send(device->front, worker, &envelope, -1);
}

static int send_suspend(struct device *device, struct worker *worker, uint32_t sequence)
{
	Vsockd__Suspend suspend = VSOCKD__SUSPEND__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	suspend.sequence = sequence;
	suspend.is_on = device_is_suspended(device);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_SUSPEND;
	envelope.suspend = &suspend;
	device->will_suspend = suspend.is_on;
	return worker_send(device->front, worker, &envelope, -1);
}

/* As it is by now: the client may have left. */
static int send_capture(struct device *device, struct worker *worker, uint32_t sequence)
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
	return worker_send(device->front, worker, &envelope, wanted->number != 0 ? wanted->fd : -1);
}

static int send_state(struct device *device, struct worker *worker, bool is_load, uint32_t sequence)
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
	return worker_send(device->front, worker, &envelope, device->session.state_fd);
}

static int send_ring_journal(struct device *device, struct worker *worker, uint32_t sequence)
{
	Vsockd__RingJournal journal = VSOCKD__RING_JOURNAL__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	journal.sequence = sequence;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_JOURNAL;
	envelope.ring_journal = &journal;
	return worker_send(device->front, worker, &envelope, device->ring_journal);
}

static int send_memory_remove(struct device *device, struct worker *worker, uint32_t sequence)
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
	return worker_send(device->front, worker, &envelope, -1);
}

static int send_assign(struct device *device, struct worker *worker, uint32_t sequence)
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
	return worker_send(device->front, worker, &envelope, -1);
}

static int send_limits(struct device *device, struct worker *worker, uint32_t sequence)
{
	Vsockd__Limits limits = VSOCKD__LIMITS__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	limits.sequence = sequence;
	limits.bytes_per_second = device->limits.max_bandwidth;
	limits.buffer_memory = device->limits.max_buffer_memory;
	limits.n_ranges = command_port_ranges(device);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_LIMITS;
	envelope.limits = &limits;
	return worker_send(device->front, worker, &envelope, -1);
}

static int send_port_range(struct device *device, struct worker *worker, uint32_t number,
			   uint32_t sequence)
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
	return worker_send(device->front, worker, &envelope, -1);
}

static int send_ring_start(struct device *device, struct worker *worker, uint32_t ring,
			   uint32_t sequence)
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
	return worker_send(device->front, worker, &envelope, state->fds[SESSION_KICK]);
}

static int send_ring_enable(struct device *device, struct worker *worker, uint32_t ring,
			    uint32_t sequence)
{
	Vsockd__RingEnable enable = VSOCKD__RING_ENABLE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	enable.sequence = sequence;
	enable.ring = ring;
	enable.is_enabled = device->session.rings[ring].is_enabled;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_ENABLE;
	envelope.ring_enable = &enable;
	return worker_send(device->front, worker, &envelope, -1);
}

/* Messages of nothing but a sequence and a ring, and those of a sequence alone. */
static int send_ring_fd(struct device *device, struct worker *worker, uint32_t ring, bool is_call,
			uint32_t sequence)
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
	return worker_send(device->front, worker, &envelope,
			   device->session.rings[ring].fds[is_call ? SESSION_CALL : SESSION_ERR]);
}

static int send_ring_stop(struct device *device, struct worker *worker, uint32_t ring,
			  uint32_t sequence)
{
	Vsockd__RingStop stop = VSOCKD__RING_STOP__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	stop.sequence = sequence;
	stop.ring = ring;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_STOP;
	envelope.ring_stop = &stop;
	return worker_send(device->front, worker, &envelope, -1);
}

static int send_pool(struct device *device, struct worker *worker, uint32_t sequence)
{
	Vsockd__HandoverPool pool = VSOCKD__HANDOVER_POOL__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	pool.sequence = sequence;
	pool.size = device->worker->buffer_size;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER_POOL;
	envelope.handover_pool = &pool;
	return worker_send(device->front, worker, &envelope, device->worker->buffer);
}

/* Commands of a handover that are a sequence and nothing else, as that one is. */
static int send_handover(struct device *device, struct worker *worker, enum step_kind kind,
			 uint32_t sequence)
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
	return worker_send(device->front, worker, &envelope, -1);
}

static int send_ring_kick(struct device *device, struct worker *worker, uint32_t ring,
			  uint32_t sequence)
{
	Vsockd__RingKick kick = VSOCKD__RING_KICK__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	kick.sequence = sequence;
	kick.ring = ring;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_KICK;
	envelope.ring_kick = &kick;
	return worker_send(device->front, worker, &envelope, -1);
}

static int send_bare(struct device *device, struct worker *worker, enum step_kind kind,
		     uint32_t sequence)
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
	return worker_send(device->front, worker, &envelope, -1);
}

int command_send(struct device *device, struct worker *worker, const struct step *step,
		 uint32_t sequence)
{
	const struct session_region *region = &device->session.regions[step->number];

	switch (step->kind) {
	case STEP_ASSIGN:
		return send_assign(device, worker, sequence);
	case STEP_LIMITS:
		return send_limits(device, worker, sequence);
	case STEP_PORT_RANGE:
		return send_port_range(device, worker, step->number, sequence);
	case STEP_RING_JOURNAL:
		return send_ring_journal(device, worker, sequence);
	case STEP_MEMORY_STAGE:
		return send_region(device, worker, region, true, sequence);
	case STEP_MEMORY_ADD:
		return send_region(device, worker, region, false, sequence);
	case STEP_MEMORY_REMOVE:
		return send_memory_remove(device, worker, sequence);
	case STEP_RING_CALL:
		return send_ring_fd(device, worker, step->number, true, sequence);
	case STEP_RING_ERROR:
		return send_ring_fd(device, worker, step->number, false, sequence);
	case STEP_RING_ENABLE:
		return send_ring_enable(device, worker, step->number, sequence);
	case STEP_RING_START:
		return send_ring_start(device, worker, step->number, sequence);
	case STEP_RING_STOP:
		return send_ring_stop(device, worker, step->number, sequence);
	case STEP_SUSPEND:
		return send_suspend(device, worker, sequence);
	case STEP_RING_KICK:
		return send_ring_kick(device, worker, step->number, sequence);
	case STEP_RING_LOG:
		return send_ring_log(device, worker, step->number, sequence);
	case STEP_LOG_SET:
		return send_log_set(device, worker, sequence);
	case STEP_LOG_FD:
		return send_log_fd(device, worker, sequence);
	case STEP_QUARANTINE:
		return send_quarantine(device, worker, sequence);
	case STEP_CAPTURE:
		return send_capture(device, worker, sequence);
	case STEP_STATE:
		return send_state(device, worker, step->number != 0, sequence);
	case STEP_HANDOVER_POOL:
		return send_pool(device, worker, sequence);
	case STEP_HANDOVER:
	case STEP_HANDOVER_RESUME:
	case STEP_HANDOVER_CHECK:
	case STEP_HANDOVER_COMMIT:
		return send_handover(device, worker, step->kind, sequence);
	case STEP_FEATURES:
	case STEP_MEMORY_COMMIT:
	case STEP_RESET:
	case STEP_FAIL:
	case STEP_NONE:
		break;
	}
	return send_bare(device, worker, step->kind, sequence);
}
