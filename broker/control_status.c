/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/control.h"

#include "broker/front.h"

enum control_vm_state control_vm_state(const struct device *device)
{
	if (!device->has_frontend)
		return CONTROL_VM_WAITING;
	if (device->has_failed)
		return CONTROL_VM_FAILED;
	if (!device->worker)
		return CONTROL_VM_STARTING;
	if (device_is_suspended(device))
		return CONTROL_VM_SUSPENDED;
	if (restore_holds(device))
		return CONTROL_VM_QUARANTINE;
	if (!device_rings_run(device))
		return CONTROL_VM_STOPPED;
	return CONTROL_VM_RUNNING;
}

static uint64_t age(const struct front *front, uint64_t since)
{
	return front->now > since ? front->now - since : 0;
}

static bool say_vm(struct front *front, struct control_client *client, const struct device *device)
{
	const struct worker *worker = device->worker;
	Control__Reply reply = CONTROL__REPLY__INIT;
	Control__Vm vm = CONTROL__VM__INIT;

	vm.cid = device->configuration->guest_cid;
	vm.state = control_vm_state(device);
	vm.n_workers_lost = device->n_lost;
	vm.n_connections = device->endpoints.n_used;
	vm.max_connections = device->limits.max_connections;
	if (device->has_frontend) {
		vm.frontend_age = age(front, device->frontend_since);
		vm.features = device->session.features;
		vm.protocol_features = device->session.protocol_features;
	}
	if (worker) {
		vm.worker_pid = worker->pid;
		vm.worker_number = worker->number;
		vm.worker_age = age(front, worker->started);
	}
	reply.body_case = CONTROL__REPLY__BODY_VM;
	reply.vm = &vm;
	return control_send(front, client, &reply);
}

/* cursor: whether it was said to the devices; then each has to have settled. */
static bool set_suspended(struct front *front, struct control_client *client, bool is_suspended)
{
	struct device *first = front->devices, *last = first + front->n_devices;

	if (client->request.cid != 0) {
		first = control_device(front, client);
		if (!first)
			return true;
		last = first + 1;
	}
	for (struct device *device = first; client->cursor == 0 && device < last; device++)
		if (device_is_present(device))
			device_suspend(device, is_suspended);
	client->cursor = 1;
	for (const struct device *device = first; device < last; device++)
		if (!device_has_settled(device))
			return false;
	return true;
}

bool control_suspend(struct front *front, struct control_client *client)
{
	return set_suspended(front, client, true);
}

bool control_resume(struct front *front, struct control_client *client)
{
	return set_suspended(front, client, false);
}

bool control_status(struct front *front, struct control_client *client)
{
	for (; client->cursor < front->n_devices; client->cursor++)
		if (device_is_present(&front->devices[client->cursor]) &&
		    !say_vm(front, client, &front->devices[client->cursor]))
			return false;
	return true;
}

static enum control_restore restore_state(const struct device *device)
{
	if (restore_is_transferring(device))
		return CONTROL_RESTORE_LOADING;
	if (device->restore.phase == RESTORE_WAITING)
		return CONTROL_RESTORE_RESET_DUE;
	if (device->restore.phase == RESTORE_SENT)
		return CONTROL_RESTORE_RESET_SENT;
	return CONTROL_RESTORE_NONE;
}

static bool say_details(struct front *front, struct control_client *client,
			const struct device *device)
{
	Control__Reply reply = CONTROL__REPLY__INIT;
	Control__Details details = CONTROL__DETAILS__INIT;

	details.max_handshakes = device->limits.max_handshakes;
	details.buffer_size = device->limits.tx_buffer_size;
	details.max_connection_rate = device->configuration->max_connection_rate;
	details.max_buffer_memory = device->limits.max_buffer_memory;
	details.max_bandwidth = device->limits.max_bandwidth;
	details.n_deaths = device->n_deaths;
	details.log_size =
		device->has_frontend && device->session.log.fd >= 0 ? device->session.log.size : 0;
	details.restore = restore_state(device);
	reply.body_case = CONTROL__REPLY__BODY_DETAILS;
	reply.details = &details;
	return control_send(front, client, &reply);
}

static bool say_ring(struct front *front, struct control_client *client,
		     const struct device *device, uint32_t index)
{
	const struct session_ring *state = &device->session.rings[index];
	Control__Reply reply = CONTROL__REPLY__INIT;
	Control__Ring ring = CONTROL__RING__INIT;

	ring.index = index;
	ring.is_started = state->is_started;
	ring.is_enabled = state->is_enabled;
	ring.num = state->num;
	ring.next = state->base;
	ring.has_kick = state->fds[SESSION_KICK] >= 0;
	ring.has_call = state->fds[SESSION_CALL] >= 0;
	ring.has_error = state->fds[SESSION_ERR] >= 0;
	ring.is_logged = state->is_logged;
	ring.desc = state->desc;
	ring.avail = state->avail;
	ring.used = state->used;
	reply.body_case = CONTROL__REPLY__BODY_RING;
	reply.ring = &ring;
	return control_send(front, client, &reply);
}

static bool say_region(struct front *front, struct control_client *client,
		       const struct session_region *state)
{
	Control__Reply reply = CONTROL__REPLY__INIT;
	Control__Region region = CONTROL__REGION__INIT;

	region.guest_address = state->guest_address;
	region.size = state->size;
	region.user_address = state->user_address;
	region.offset = state->mmap_offset;
	region.page_size = state->alignment;
	region.is_sealed = state->is_sealed;
	reply.body_case = CONTROL__REPLY__BODY_REGION;
	reply.region = &region;
	return control_send(front, client, &reply);
}

/* One row; which, is counted: what the VM is, its details, rings, regions. */
static bool say_row(struct front *front, struct control_client *client, const struct device *device)
{
	uint64_t row = client->cursor;

	if (row == 0)
		return say_vm(front, client, device);
	if (row == 1)
		return say_details(front, client, device);
	if (row < 2 + SESSION_RINGS)
		return say_ring(front, client, device, (uint32_t)row - 2);
	return say_region(front, client, &device->session.regions[row - 2 - SESSION_RINGS]);
}

bool control_show(struct front *front, struct control_client *client)
{
	const struct device *device = control_device(front, client);

	if (!device)
		return true;
	/* The session may end, or change, between two rows. */
	while (client->cursor < 2 ||
	       (device->has_frontend &&
		client->cursor < 2 + SESSION_RINGS + device->session.n_regions)) {
		if (!say_row(front, client, device))
			return false;
		client->cursor++;
	}
	return true;
}
