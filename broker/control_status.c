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
	vm.max_connections = device->configuration->max_connections;
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

bool control_status(struct front *front, struct control_client *client)
{
	for (; client->cursor < front->n_devices; client->cursor++)
		if (!say_vm(front, client, &front->devices[client->cursor]))
			return false;
	return true;
}
