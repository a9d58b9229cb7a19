/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The device's side of one virtqueue over hostile memory: fetch chains, give
 * them back, notify (virtio 1.3, 2.7 "Split Virtqueues" and 2.8 "Packed
 * Virtqueues"). Chains are given back in the order in which they were fetched.
 *
 * A driver that breaks the rules breaks its ring, nothing else: is_broken is
 * set, the reason stands in broken_reason, and the ring is left alone until it
 * is started anew. No heap. System calls: writev on the ring's own fds.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "worker/dirty_log.h"
#include "worker/guest_memory.h"

#define RING_SIZE_MAX 32768

/*
 * Room for the parts of one chain: as many descriptors as a ring or an indirect
 * table can have, and a few more for those that cross a border of two regions.
 */
#define RING_PARTS_MAX (RING_SIZE_MAX + 1024)

/* Front-end user addresses; of a packed ring, used is the device's event area, avail the driver's.
 */
struct ring_addresses {
	uint64_t desc, used, avail;
};

/*
 * How far the device is in a packed ring: a used descriptor does not say how
 * many places its chain took, so guest memory does not tell a successor. Each
 * step is noted before it is made, in memory that outlives the process.
 */
struct ring_journal {
	uint64_t step;
};

/* What it takes to give a chain back. */
struct ring_ticket {
	uint16_t head;	  /* split: its first descriptor; packed: the driver's id for it */
	uint16_t n_slots; /* places that it takes up in the ring */
	bool has_room;	  /* some of it is for the device */
};

struct ring {
	bool is_started;
	bool is_enabled;
	bool is_suspended; /* left alone, whatever else is true of it */
	bool is_broken;
	/* As negotiated; the layout counts at the next start. */
	bool has_event_idx, has_indirect, has_in_order, has_packed;
	bool is_packed;
	uint32_t in_band;	/* RING_..._IN_BAND: what has no fd, and goes by message */
	bool owes_call;		/* it is due: such a message, or see ring_publish_uncalled() */
	bool owes_error;	/* such a message is due */
	bool owes_first_call;	/* once it runs: for what another process gave back */
	bool is_notified_once;	/* a first call after start is sent without asking */
	uint32_t broken_reason; /* enum report_ring_reason */
	uint64_t broken_value;
	uint32_t num;
	struct ring_addresses addresses;
	int kick, call, error; /* owned; -1: none */
	int kick_error;	       /* why kicks cannot be waited for, until the front is told; or 0 */
	struct dirty_log *log; /* the device's; NULL: none */
	bool is_logged;	       /* VHOST_VRING_F_LOG: writes to the ring itself are marked */
	uint64_t log_address;  /* guest address that stands for the first byte of used */

	uint8_t *desc, *avail, *used; /* in guest memory */
	uint64_t desc_address;	      /* guest address of desc */
	uint16_t next_avail;	      /* position of the next chain to fetch */
	uint16_t next_used;	      /* position of the next chain to give back */
	struct ring_ticket batch;     /* IN_ORDER: the last of those that it alone will tell of */
	/* split */
	uint16_t avail_idx; /* as last read from the driver, checked */
	uint16_t used_idx;  /* as last published */
	/* packed */
	uint32_t n_uncalled;	      /* places given back since the last decision about a call */
	struct ring_journal *journal; /* the device's; NULL: none */
};

/*
 * One chain: parts[0..n_readable) come from the driver, parts[n_readable..
 * n_readable + n_writable) are for the device. A chain that mixes the two is
 * malformed: it is to be given back with length 0.
 */
struct chain {
	struct ring_ticket ticket;
	uint16_t at; /* position in the ring */
	bool is_malformed;
	struct iovec *parts;
	size_t n_readable, n_writable;
	uint64_t readable_len, writable_len;
};

/* A ring that was never started: no fds, stopped, disabled. */
void ring_init(struct ring *ring);

/*
 * Start at a base, as SET_VRING_BASE has it, or behind the last used chain. 0,
 * -EINVAL, or -EFAULT when a part of the ring lies outside guest memory.
 */
int ring_start(struct ring *ring, struct guest_memory *memory, uint32_t num,
	       const struct ring_addresses *addresses, uint32_t base, bool from_used_index);

/* Stop; the base to go on at is returned, the same one each time. */
uint32_t ring_stop(struct ring *ring);

/*
 * What a ring that is handed over takes along; everything else stands in guest
 * memory, or is as the session has it. Yielded by a ring whose chains were all
 * given back and published, as they are after each device_pump().
 */
struct ring_state {
	uint32_t base; /* as ring_stop() returns it */
	bool was_called;
	bool owes_first_call;
};

struct ring_state ring_state(const struct ring *ring);

/* ring_start() where another process left the ring, which has stopped touching it. */
int ring_resume(struct ring *ring, struct guest_memory *memory, uint32_t num,
		const struct ring_addresses *addresses, const struct ring_state *state);

/* For one that stood still there: what ring_stop() returns. */
void ring_rest(struct ring *ring, uint32_t base);

/* How much was used so far: to compare with what another process found in this ring. */
uint32_t ring_used_position(const struct ring *ring);

/* The memory table changed: find the ring again, or break it. */
void ring_relocate(struct ring *ring, struct guest_memory *memory);

/* Started, enabled, not broken and not suspended. */
bool ring_is_running(const struct ring *ring);

/*
 * Fetch the next chain into parts[0..n_parts_max). 1 when there was one, 0 when
 * not, -EPROTO when the ring just broke, -EAGAIN when the chain needs more parts
 * than there are: it was not fetched. RING_PARTS_MAX are enough for any chain.
 */
int ring_pop(struct ring *ring, struct guest_memory *memory, struct iovec *parts,
	     size_t n_parts_max, struct chain *ret_chain);

/* This chain and those fetched after it were not used: they will be fetched again. */
void ring_unpop(struct ring *ring, const struct chain *chain);

/* Give a chain back with len bytes written; visible at the next ring_publish() at the latest. */
void ring_push(struct ring *ring, const struct ring_ticket *ticket, uint32_t len);

/* Make what was pushed visible and call the driver if it wants to be called. */
void ring_publish(struct ring *ring);

/*
 * The same where something is more urgent than the call, which wakes the guest:
 * ring_pay_call() makes up for it, before anything is waited for. In band it is a message.
 */
void ring_publish_uncalled(struct ring *ring);
void ring_pay_call(struct ring *ring);

/* Does the driver have chains that were not fetched? Reads guest memory. */
bool ring_has_chains(struct ring *ring);

/*
 * Ask to be kicked at the next chain. true when there already is one: then no
 * kick may come, look again.
 */
bool ring_enable_kicks(struct ring *ring);
/* The same for the first chain behind a position that the driver had reached. */
bool ring_enable_kicks_at(struct ring *ring, uint16_t position);
void ring_disable_kicks(struct ring *ring);

/* Where the driver is now, unchecked; and whether it has gone on from there. */
uint16_t ring_driver_position(const struct ring *ring);
bool ring_driver_is_past(const struct ring *ring, uint16_t position);

/* Is it looked at all the time, for want of anything that would tell of chains? */
bool ring_is_polled(const struct ring *ring);

/* Call the driver whatever it asked for, by eventfd or, later, by message. */
void ring_call(struct ring *ring);
bool ring_calls_in_band(const struct ring *ring);
void ring_signal_error(struct ring *ring);
