/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "broker/device_frontend.h"
#include "broker/front.h"
#include "broker/log.h"

/*
 * Commands take microseconds, mapping memory a few milliseconds. A worker that
 * was made to block, by an fd of its own front-end, is replaced then.
 */
#define COMMAND_MS 5000

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

static void add_limits(struct device *device)
{
	add_step(&device->sync, STEP_LIMITS, 0);
	for (uint32_t i = 0; i < command_port_ranges(device); i++)
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
	add_step(&device->sync, STEP_HANDOVER_SOCKETS, 0);
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

/* Send the next step if none is under way. A dead worker is told of elsewhere. */
void sync_run(struct device *device)
{
	struct sync *sync = &device->sync;

	if (!target(device) || sync->is_sent || sync_is_idle(device))
		return;
	if (command_send(device, target(device), &sync->steps[sync->next_step]) != 0)
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
	if (step->kind == STEP_SUSPEND && sync->is_of_successor)
		device->handover.told_suspended = device->will_suspend;
	else if (step->kind == STEP_SUSPEND)
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
	if (status != 0 && sync->has_operation && sync->operation.kind == STEP_STATE)
		device_log(device, LOG_WARNING, "device state: its transfer does not begin: %s",
			   strerror(-status));
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
