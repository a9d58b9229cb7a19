/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/front_rig.h"

void front_rig_init(struct front_rig *rig)
{
	*rig = (struct front_rig){
		.front = {.devices = &rig->device, .n_devices = 1},
		.device = {.front = &rig->front, .configuration = &rig->vm, .worker = &rig->worker},
		.vm = {.guest_cid = 3},
		.worker = {.state = WORKER_ASSIGNED, .device = &rig->device},
	};
}
