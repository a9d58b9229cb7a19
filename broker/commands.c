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

/* The fd stays whose it is. */
static int send_command(struct device *device, struct worker *worker, ProtobufCMessage *body,
			int fd)
{
	return worker_send(device->front, worker, device->sync.sequence + 1, body, fd);
}

/* A command of no more than its name, and perhaps an fd. */
static int send_bare(struct device *device, struct worker *worker,
		     const ProtobufCMessageDescriptor *type, int fd)
{
	ProtobufCMessage body = PROTOBUF_C_MESSAGE_INIT(type);

	return send_command(device, worker, &body, fd);
}

static int send_region(struct device *device, struct worker *worker,
		       const struct session_region *region, bool is_staged)
{
	Vsockd__MemoryAdd add = VSOCKD__MEMORY_ADD__INIT;

	add.guest_address = region->guest_address;
	add.size = region->size;
	add.user_address = region->user_address;
	add.mmap_offset = region->mmap_offset;
	add.alignment = region->alignment;
	add.is_staged = is_staged;
	return send_command(device, worker, &add.base, region->fd);
}

static int send_log_set(struct device *device, struct worker *worker)
{
	const struct session_log *log = &device->session.log;
	Vsockd__LogSet set = VSOCKD__LOG_SET__INIT;

	set.size = log->size;
	set.mmap_offset = log->mmap_offset;
	set.alignment = log->alignment;
	return send_command(device, worker, &set.base, log->fd);
}

static int send_ring_log(struct device *device, struct worker *worker, uint32_t ring)
{
	Vsockd__RingLog log = VSOCKD__RING_LOG__INIT;

	log.ring = ring;
	log.is_logged = device->session.rings[ring].is_logged;
	log.log_address = device->session.rings[ring].log_address;
	return send_command(device, worker, &log.base, -1);
}

static int send_quarantine(struct device *device, struct worker *worker)
{
	Vsockd__Quarantine quarantine = VSOCKD__QUARANTINE__INIT;

	quarantine.is_on = restore_holds(device);
	quarantine.sends_reset =
		device->restore.phase == RESTORE_WAITING && device->restore.sends_reset;
	quarantine.was_announced = quarantine.sends_reset && device->restore.was_announced;
	quarantine.used = device->restore.announced_used;
	device->told_quarantine = quarantine.is_on;
	return send_command(device, worker, &quarantine.base, -1);
}

static int send_suspend(struct device *device, struct worker *worker)
{
	Vsockd__Suspend suspend = VSOCKD__SUSPEND__INIT;

	suspend.is_on = device_is_suspended(device);
	device->will_suspend = suspend.is_on;
	return send_command(device, worker, &suspend.base, -1);
}

/* As it is by now: the client may have left. */
static int send_capture(struct device *device, struct worker *worker)
{
	const struct device_capture *wanted = &device->capture;
	Vsockd__Capture capture = VSOCKD__CAPTURE__INIT;

	capture.number = wanted->number;
	capture.payload_max = wanted->payload_max;
	device->will_capture = wanted->number;
	return send_command(device, worker, &capture.base, wanted->number != 0 ? wanted->fd : -1);
}

static int send_state_save(struct device *device, struct worker *worker)
{
	Vsockd__StateSave save = VSOCKD__STATE_SAVE__INIT;

	save.flags = (device->has_driver ? STATE_FLAG_DRIVER : 0) |
		     (device->had_event_ring ? STATE_FLAG_EVENT_RING : 0);
	return send_command(device, worker, &save.base, device->session.state_fd);
}

static int send_memory_remove(struct device *device, struct worker *worker)
{
	const struct session_region *region = &device->sync.removed;
	Vsockd__MemoryRemove remove = VSOCKD__MEMORY_REMOVE__INIT;

	remove.guest_address = region->guest_address;
	remove.size = region->size;
	remove.user_address = region->user_address;
	return send_command(device, worker, &remove.base, -1);
}

static int send_assign(struct device *device, struct worker *worker)
{
	Vsockd__Assign assign = VSOCKD__ASSIGN__INIT;

	assign.guest_cid = device->configuration->guest_cid;
	assign.buffer_size = device->limits.tx_buffer_size;
	assign.max_connections = device->limits.max_connections;
	assign.max_handshakes = device->limits.max_handshakes;
	assign.first_port = next_first_port(device->front);
	assign.is_quiet = device->limits.is_quiet;
	assign.poll_us = device->limits.poll_us;
	assign.wait_ms = device->limits.wait_s * 1000;
	assign.message_size = device->front->message_size;
	return send_command(device, worker, &assign.base, -1);
}

static int send_limits(struct device *device, struct worker *worker)
{
	Vsockd__Limits limits = VSOCKD__LIMITS__INIT;

	limits.bytes_per_second = device->limits.max_bandwidth;
	limits.buffer_memory = device->limits.max_buffer_memory;
	limits.n_ranges = command_port_ranges(device);
	return send_command(device, worker, &limits.base, -1);
}

static int send_port_range(struct device *device, struct worker *worker, uint32_t number)
{
	const struct port_filter *filter = &device->limits.incoming;
	Vsockd__PortRange range = VSOCKD__PORT_RANGE__INIT;
	const struct port_range *ports = number < filter->n_denied
						 ? &filter->denied[number]
						 : &filter->allowed[number - filter->n_denied];

	range.first = ports->first;
	range.last = ports->last;
	range.is_denied = number < filter->n_denied;
	return send_command(device, worker, &range.base, -1);
}

static int send_ring_start(struct device *device, struct worker *worker, uint32_t ring)
{
	const struct session_ring *state = &device->session.rings[ring];
	Vsockd__RingStart start = VSOCKD__RING_START__INIT;

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
	return send_command(device, worker, &start.base, state->fds[SESSION_KICK]);
}

static int send_ring_enable(struct device *device, struct worker *worker, uint32_t ring)
{
	Vsockd__RingEnable enable = VSOCKD__RING_ENABLE__INIT;

	enable.ring = ring;
	enable.is_enabled = device->session.rings[ring].is_enabled;
	return send_command(device, worker, &enable.base, -1);
}

static int send_ring_call(struct device *device, struct worker *worker, uint32_t ring)
{
	Vsockd__RingCall call = VSOCKD__RING_CALL__INIT;

	call.ring = ring;
	return send_command(device, worker, &call.base,
			    device->session.rings[ring].fds[SESSION_CALL]);
}

static int send_ring_error(struct device *device, struct worker *worker, uint32_t ring)
{
	Vsockd__RingError error = VSOCKD__RING_ERROR__INIT;

	error.ring = ring;
	return send_command(device, worker, &error.base,
			    device->session.rings[ring].fds[SESSION_ERR]);
}

static int send_ring_stop(struct device *device, struct worker *worker, uint32_t ring)
{
	Vsockd__RingStop stop = VSOCKD__RING_STOP__INIT;

	stop.ring = ring;
	return send_command(device, worker, &stop.base, -1);
}

static int send_pool(struct device *device, struct worker *worker)
{
	Vsockd__HandoverPool pool = VSOCKD__HANDOVER_POOL__INIT;

	pool.size = device->worker->buffer_size;
	return send_command(device, worker, &pool.base, device->worker->buffer);
}

/* Behind the sockets; when there is no room for all of them it goes on where it was. */
static int send_sockets(struct device *device, struct worker *worker)
{
	int r = handover_give_sockets(device);

	return r != 0 ? r : send_bare(device, worker, &vsockd__handover_sockets__descriptor, -1);
}

static int send_ring_kick(struct device *device, struct worker *worker, uint32_t ring)
{
	Vsockd__RingKick kick = VSOCKD__RING_KICK__INIT;

	kick.ring = ring;
	return send_command(device, worker, &kick.base, -1);
}

static int send_features(struct device *device, struct worker *worker)
{
	Vsockd__Features features = VSOCKD__FEATURES__INIT;

	features.features = device->session.features;
	return send_command(device, worker, &features.base, -1);
}

int command_send(struct device *device, struct worker *worker, const struct step *step)
{
	const struct session_region *region = &device->session.regions[step->number];

	switch (step->kind) {
	case STEP_ASSIGN:
		return send_assign(device, worker);
	case STEP_LIMITS:
		return send_limits(device, worker);
	case STEP_PORT_RANGE:
		return send_port_range(device, worker, step->number);
	case STEP_RING_JOURNAL:
		return send_bare(device, worker, &vsockd__ring_journal__descriptor,
				 device->ring_journal);
	case STEP_FEATURES:
		return send_features(device, worker);
	case STEP_MEMORY_STAGE:
		return send_region(device, worker, region, true);
	case STEP_MEMORY_COMMIT:
		return send_bare(device, worker, &vsockd__memory_commit__descriptor, -1);
	case STEP_MEMORY_ADD:
		return send_region(device, worker, region, false);
	case STEP_MEMORY_REMOVE:
		return send_memory_remove(device, worker);
	case STEP_RING_CALL:
		return send_ring_call(device, worker, step->number);
	case STEP_RING_ERROR:
		return send_ring_error(device, worker, step->number);
	case STEP_RING_ENABLE:
		return send_ring_enable(device, worker, step->number);
	case STEP_RING_START:
		return send_ring_start(device, worker, step->number);
	case STEP_RING_STOP:
		return send_ring_stop(device, worker, step->number);
	case STEP_RING_KICK:
		return send_ring_kick(device, worker, step->number);
	case STEP_SUSPEND:
		return send_suspend(device, worker);
	case STEP_RING_LOG:
		return send_ring_log(device, worker, step->number);
	case STEP_LOG_SET:
		return send_log_set(device, worker);
	case STEP_LOG_FD:
		return send_bare(device, worker, &vsockd__log_fd__descriptor,
				 device->session.log.event_fd);
	case STEP_QUARANTINE:
		return send_quarantine(device, worker);
	case STEP_CAPTURE:
		return send_capture(device, worker);
	case STEP_STATE:
		if (step->number == 0)
			return send_state_save(device, worker);
		return send_bare(device, worker, &vsockd__state_load__descriptor,
				 device->session.state_fd);
	case STEP_HANDOVER:
		return send_bare(device, worker, &vsockd__handover__descriptor, -1);
	case STEP_HANDOVER_RESUME:
		return send_bare(device, worker, &vsockd__handover_resume__descriptor, -1);
	case STEP_HANDOVER_POOL:
		return send_pool(device, worker);
	case STEP_HANDOVER_SOCKETS:
		return send_sockets(device, worker);
	case STEP_HANDOVER_CHECK:
		return send_bare(device, worker, &vsockd__handover_check__descriptor, -1);
	case STEP_HANDOVER_COMMIT:
		return send_bare(device, worker, &vsockd__handover_commit__descriptor, -1);
	case STEP_RESET:
		return send_bare(device, worker, &vsockd__reset__descriptor, -1);
	case STEP_FAIL:
	case STEP_NONE:
		break;
	}
	return send_bare(device, worker, &vsockd__fail__descriptor, -1);
}
