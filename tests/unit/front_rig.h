/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A front with one VM, guest CID 3, that a worker serves: for what needs neither a process
 * nor a socket. Everything else is zero.
 */

#include "broker/front.h"

struct front_rig {
	struct front front;
	struct device device;
	struct vm_configuration vm;
	struct worker worker;
};

/* Stays where it is from then on: its parts point to each other. */
void front_rig_init(struct front_rig *rig);
