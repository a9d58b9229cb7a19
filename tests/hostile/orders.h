/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the evil worker is to do, in a page that it shares with the test: the
 * file "orders" beside its program, mapped before it confines itself, so that
 * the test can give orders to workers that see no file any more. Whoever writes
 * an order sets n_left last.
 */

#include <stdatomic.h>
#include <stdint.h>

#define ORDERS_FIRST_CID 100 /* the evil worker is a good one for guests below */

enum orders_when {
	ORDERS_AT_START,     /* before it is confined */
	ORDERS_BEFORE_READY, /* confined, instead of Ready or before it */
	ORDERS_AS_SPARE,     /* right after Ready */
	ORDERS_AT_COMMAND,   /* number `command` since Assign, which is 0, before Done */
	ORDERS_AT_HANDOVER,  /* it is to stop for a successor, before it does; see n_done */
	ORDERS_AT_TOLD,	     /* it has stopped, and is to say message `command` of its device */
	ORDERS_AT_ACCEPTED,  /* a host program was handed over; no Done is awaited */
};

enum orders_then {
	ORDERS_GO_ON,	/* as if nothing had happened */
	ORDERS_SWALLOW, /* the command is never seen by the worker proper */
	ORDERS_EXIT,
	ORDERS_TRAP,
	ORDERS_FORBIDDEN, /* a system call that the filter does not know */
	ORDERS_SLEEP,	  /* for ever, the end of the channel included */
	ORDERS_SPIN,	  /* the same, using the processor */
};

#define ORDERS_PACKETS_MAX 64
#define ORDERS_BYTES_MAX   120
#define ORDERS_PADDED_MAX  (128u * 1024)

struct orders_packet {
	uint32_t len; /* zeroes follow behind bytes[] */
	uint32_t n_fds;
	uint8_t bytes[ORDERS_BYTES_MAX];
};

struct orders {
	_Atomic int32_t n_left; /* so many workers carry it out */
	_Atomic uint32_t n_taken;
	uint32_t when, command, then;
	uint32_t n_repeat; /* of all packets together */
	uint32_t n_packets;
	struct orders_packet packets[ORDERS_PACKETS_MAX];
	/* Done, before the packets: as often, with the command's sequence and this added. */
	uint32_t n_done, done_added, done_value;
	int32_t done_status;
};
