/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The processes of the guest test: the back-end, QEMU with the guest, and what
 * the test wants to know of them. All run in the current directory, which holds
 * their sockets and logs. They end with the thread that started them.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/frontend/stopwatch.h"

#define MACHINE_CID	     42
#define MACHINE_SIBLING_CID  43
#define MACHINE_SOCKET	     "vhost-user.sock"
#define MACHINE_BACK_END_LOG "back-end.log"
#define MACHINE_QEMU_LOG     "qemu.log"
#define MACHINE_CONTROL	     "control.sock"
#define MACHINE_CONTROL_LOG  "vsockctl.log"
#define MACHINE_SERIAL_LOG   "serial.log"
/* The same of the second VM, of the same back-end. */
#define MACHINE_SIBLING_SOCKET	   "sibling-vhost-user.sock"
#define MACHINE_SIBLING_QEMU_LOG   "sibling-qemu.log"
#define MACHINE_SIBLING_SERIAL_LOG "sibling-serial.log"

struct machine {
	const char *kernel, *initramfs, *accelerator;
	bool is_packed;	 /* packed rings are offered to the guest */
	char **back_end; /* the command, without the options that machine_start_back_end() adds */
	pid_t back_end_pid, qemu_pid, sibling_pid; /* -1: not running */
};

/* Start it with two VMs and wait until it listens on their sockets. 0 or negative errno. */
int machine_start_back_end(struct machine *machine);

int machine_start_qemu(struct machine *machine);
int machine_start_sibling(struct machine *machine);

bool machine_qemu_is_running(const struct machine *machine);

/* Wait for the end of *pid. Its wait status, or -ETIMEDOUT. On the first *pid becomes -1. */
int machine_wait(pid_t *pid, unsigned int limit_ms);

/* Did the guest take a feature of that name, as "VIRTIO_F_RING_PACKED"? QEMU says so. */
bool machine_has_feature(const char *name);

/* "stop" or "cont": the guest's processors and its devices. */
int machine_pause(const char *command);

/*
 * Another worker takes the guest over, as the tool says that VSOCKCTL names. Other
 * back-ends have none.
 */
bool machine_can_replace_worker(void);
int machine_replace_worker(void);

/*
 * The worker that serves the guest: of the processes named vsockd-worker below
 * the back-end, the one that worked most (a spare has done nothing). -ESRCH: none.
 */
pid_t machine_worker(const struct machine *machine);

/* No capability, no way to get one, behind a system-call filter: as the kernel says. */
bool machine_is_confined(pid_t pid);

/* Begin to measure a time of the back-end and the guests that run now: all of their threads. */
void machine_start_watch(struct stopwatch *ret_watch);

/* Wait until no process is left below `ancestor`, other than this one. 0 or -ETIMEDOUT. */
int machine_wait_alone(pid_t ancestor, unsigned int limit_ms);

/* Kill every child of this process, and theirs as they become children, until none is left. */
void machine_kill_children(void);
