/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A ring of the worker over memory of three regions, and a driver of either
 * layout. Chains are staged as for a split ring, descriptors with an index and
 * a next one; how they come to lie in guest memory depends on the mode, so a
 * test need not know it.
 */

#include <stdbool.h>
#include <stdint.h>

#include "ipc/message.h"
#include "worker/ring.h"

#define NEXT	 1
#define WRITE	 2
#define INDIRECT 4

/* Two regions that touch in the guest and nowhere else, and one for the rings. */
#define MIB    UINT64_C(0x100000)
#define LOW    UINT64_C(0x40000000)
#define BORDER (LOW + MIB)
#define END    (BORDER + MIB)
#define RINGS  UINT64_C(0x80000000)
#define USER   UINT64_C(0x7f0000000000) /* user address of guest address 0 */

/* Within the region for rings. */
#define DESC  UINT64_C(0)
#define AVAIL UINT64_C(0x80000)
#define USED  UINT64_C(0xa0000)

struct mode {
	bool is_packed;
	bool has_event_idx;
	bool is_indirect; /* each chain in a table of its own */
};

extern struct mode mode;
extern struct guest_memory memory;
extern struct ring ring;
extern struct ring_journal journal;
extern struct iovec parts[RING_PARTS_MAX];
extern struct chain chain;
extern const struct ring_addresses usual;

/* For cmocka; the mode is the initial state, NULL for a split ring without EVENT_IDX. */
int rig_set_up(void **state);
int rig_tear_down(void **state);

uint32_t draw(uint32_t below);

/* Where a guest address is. */
uint8_t *at(uint64_t guest_address);
void store16(uint64_t guest_address, uint16_t value);
uint16_t load16(uint64_t guest_address);
void add_region(uint64_t guest_address, uint64_t size, bool is_staged);
void add_regions(bool is_staged);

/* ---- the driver ---- */

extern uint32_t first_base; /* of a ring that was never used: what start() starts at */

void start(uint32_t num);
/* The driver knows of nothing; memory stays as it is. */
void driver_forget(void);
/* Try the same again on a ring without a past. */
void heal(void);

void describe(uint32_t index, uint64_t address, uint32_t len, uint16_t flags, uint16_t next);
/* An entry of an indirect table, which may lie over the border. Of a packed ring next counts for
 * nothing. */
void describe_in(uint64_t table, uint32_t index, uint64_t address, uint32_t len, uint16_t flags,
		 uint16_t next);
/* Make the chain that begins there available. */
void offer(uint16_t head);
/* n chains of one byte each for the device to read, then all given back: how many calls that made.
 */
uint64_t use(uint32_t n);

/* Chains that came back and were not looked at; the next of them. */
uint32_t n_used(void);
void expect_used(uint16_t head, uint32_t len);
/* n chains of which only the last one is told of. */
void expect_used_batch(uint32_t n, uint16_t head, uint32_t len);

/* Is the chain that was offered last one that the device wants to be kicked for? */
bool wants_kick(void);
/* No call; a call for each; with EVENT_IDX, when the chain n places on is used. */
void ask_for_no_calls(void);
void ask_for_calls(void);
void ask_for_call_in(int n);

int pop(void);
uint64_t calls(void);
void expect_broken(enum report_ring_reason reason);
