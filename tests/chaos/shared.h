/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the processes of a chaos run have in common: one that drives vsockd (main.c) and one
 * for each VM (vm.c), which is its guest and its host programs. They write what they did
 * into one mapping; the first that finds something wrong says what, and all is over.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define VMS		 4
#define BYSTANDER	 0 /* never gets a fault */
#define GUEST_OF_RELOADS 3 /* the VM that a reload takes away and brings back */

/*
 * How long a wait may last of what has to come: well beyond all pauses that are made, and
 * what a sanitizer and a machine with other work make of them.
 */
#define LIMIT 40000

/*
 * Connections that were asked for so shortly (ms) behind a fault may still be hit by it:
 * the front may hear of the death of a worker behind a host program that connects.
 */
#define AFTERMATH 2000

/* Workers that die in a row are taken for the guest's doing, see DEATHS_MAX in broker/device.c. */
#define KILLS_MAX 5

/*
 * vsockd gives up what is not connected in 2 s (CONNECTION_CONNECT_MS), and answers an operator
 * whose connection a guest does not end in that time (KILL_MS). A wait of so many ms says that
 * the machine has too much to do; what is not connected then, or ended, is nobody's fault, and
 * so long afterwards.
 */
#define SLOW	 1200
#define RECOVERY 5000

/* A fault that is not over. */
#define FAULT_LASTS INT64_MAX

/* What is done to vsockd and its VMs; the names stand in shared.c. */
enum operation {
	OP_KILL_WORKER,
	OP_KILL_ANY_WORKER,
	OP_KILL_FRONTEND,
	OP_RECONNECT,
	OP_REBOOT,
	OP_RESTORE,
	OP_STOP_RINGS,
	OP_DISABLE_RINGS,
	OP_REPLACE,
	OP_REPLACE_ALL,
	OP_SUSPEND,
	OP_STARVE,
	OP_PLUG,
	OP_UNPLUG,
	OP_PASS_ON,
	OP_CAPTURE,
	OP_KILL_CONNECTION,
	OP_HOST_DIES,
	OP_GUEST_RESETS,
	OP_LOG_LEVEL,
	OP_LOOK,
	OP_RELOAD,
	OP_REMOVE_AND_ADD,
	OP_REST,
	OP_RESTART,
	OPERATIONS,
};

#define LIVES	   4096 /* ends of a VM that are remembered */
#define REMEMBERED 24	/* operations of a VM */

/* One end of a connection, beyond its own process. */
struct life {
	_Atomic uint64_t id;
	_Atomic bool is_aborted; /* by who has it, or by the operator */
};

struct done {
	_Atomic int64_t at;
	_Atomic int operation; /* negative: it has ended */
};

struct shared_vm {
	_Atomic pid_t pid;
	_Atomic int64_t last_fault; /* when, or FAULT_LASTS: connections may be reset */
	_Atomic int64_t last_abort; /* of some connection */
	_Atomic bool is_down;	    /* no vsockd, or it does not know the VM */
	_Atomic bool is_to_rest;    /* to open no connection and to wait until there is none */
	_Atomic bool is_to_leave;   /* and then the front-end leaves */
	_Atomic uint64_t n_ends, n_opened;
	_Atomic uint32_t n_kills; /* of its workers, in this session */
	_Atomic bool is_gone;	  /* it has left */
	struct life lives[LIVES];
	struct done done[REMEMBERED];
	_Atomic uint32_t n_done;
};

struct shared {
	uint64_t seed;
	int64_t began_at;
	pid_t main;
	char directory[64];
	_Atomic bool is_over;
	_Atomic bool has_failed;
	char failure[8192];
	int64_t failed_at;
	_Atomic bool is_told; /* the failure is complete */
	_Atomic uint64_t n_operations[OPERATIONS];
	_Atomic uint64_t n_bytes, n_messages;
	_Atomic uint64_t n_opened, n_ended, n_reset;
	_Atomic uint64_t n_kills; /* of workers */
	_Atomic int64_t last_slow;
	_Atomic uint64_t n_slow;
	_Atomic uint64_t n_round_trips, worst_ns, worst_since_ns; /* of the bystander */
	struct shared_vm vms[VMS + 1];				  /* the last one: of main.c */
};

extern struct shared *shared;
extern const char *const operation_names[OPERATIONS];

int shared_init(uint64_t seed);

/* Milliseconds, of CLOCK_MONOTONIC. */
int64_t now_ms(void);

/* The random numbers of one process. */
struct dice {
	uint64_t state;
};

struct dice dice_of(uint64_t seed, uint64_t process);
uint32_t draw(struct dice *dice, uint32_t n);

/* An operation begins, and is over; vm: VMS for what concerns all. */
void note(size_t vm, enum operation operation);
void note_end(size_t vm, enum operation operation);

/* Something that began then has lasted until now. */
void note_wait(int64_t began_at);

/* Connections of this VM may be reset from here on, until fault_end(). Not the bystander's. */
void fault_begin(size_t vm);
void fault_end(size_t vm);

/* The first failure of all is kept, and has_failed ends all processes. */
void tell_failure(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same, of a VM, and the end of this process. */
_Noreturn void vm_fail(size_t vm, const char *format, ...) __attribute__((format(printf, 2, 3)));
