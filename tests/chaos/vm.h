/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A VM of a chaos run: a process that is its VMM, its guest and its host programs, keeps
 * connections of all kinds full of bytes both ways, and does to itself what a VMM, a guest
 * and host programs may do, drawn from its own dice. The bystander does nothing of that.
 */

#include "tests/chaos/end.h"
#include "tests/chaos/shared.h"
#include "tests/frontend/guest.h"
#include "tests/integration/tool.h"

#define ENDS_MAX 40

/* Where host programs listen; the guest listens at the same ports. */
enum { PORT_STREAM = 7000, PORT_MESSAGES, PORT_ONE_WAY, PORT_ECHO, PORTS = 4 };

/* What vsockctl is doing for this VM, beside its bytes. */
struct errand {
	struct tool tool;
	bool is_running;
	enum operation operation;
	int stage;		   /* 0: none */
	int64_t began_at, sent_at; /* ms */
	int64_t until;		   /* of a capture, or of what is suspended */
};

struct vm {
	size_t number;
	struct dice dice;
	char socket[128], uds_path[128], control[128], cid[8];
	int listeners[PORTS];
	struct guest guest;
	bool has_guest;
	uint64_t n_resets_seen; /* of the transport */
	struct end *ends[ENDS_MAX];
	size_t n_ends;
	int64_t next_operation, next_fault;
	struct errand errand, capture;
	/* The bystander's round trips: */
	struct guest_connection *ping;
	struct watch echo;
	uint64_t pinged_ns;
	uint8_t ping_bytes[64];
	size_t n_pinged;
};

/* The process. */
_Noreturn void vm_run(size_t number);

static inline uint64_t vm_cid(size_t number)
{
	return 3 + number;
}

/* For operations.c: the session is over, without a word; a new one begins by itself. */
void vm_lose_guest(struct vm *vm);

/* operations.c: begin what is due, and go on with what takes time. */
void operations_step(struct vm *vm);
/* End errands; nothing of it is left. */
void operations_finish(struct vm *vm);
/* The result of a call on the guest: 0, or it is explained by a fault and the guest is lost. */
bool vm_succeeds(struct vm *vm, int result, const char *what);

/* bystander.c */
void bystander_step(struct vm *vm);
void bystander_rest(struct vm *vm);
