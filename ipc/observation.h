/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a worker can be asked about: the order of its counters, and the names of
 * what a connection may be in. Numbers only, known to worker, front and vsockctl.
 */

#include <stdint.h>

/* Upper bounds of the times in which connections were made, in ms; one more is for the rest. */
#define COUNTER_TIMES_MS                                                                           \
	{                                                                                          \
		1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000                                     \
	}
#define COUNTER_TIMES 12

/* Sums since the worker was started. "guest": it asked; "host": a program on the host did. */
enum counter {
	COUNTER_TO_GUEST_BYTES, /* payload of streams */
	COUNTER_FROM_GUEST_BYTES,
	COUNTER_TO_GUEST_PACKETS, /* of any kind */
	COUNTER_FROM_GUEST_PACKETS,
	COUNTER_GUEST_CONNECTED,
	COUNTER_GUEST_REFUSED, /* nobody listens, or the front said no */
	COUNTER_GUEST_LIMITED, /* all connections were in use */
	COUNTER_HOST_CONNECTED,
	COUNTER_HOST_REFUSED,	/* the guest said RST */
	COUNTER_HOST_NO_ANSWER, /* the guest said nothing in time */
	COUNTER_HANDSHAKE_MALFORMED,
	COUNTER_HANDSHAKE_TIMEOUT,
	COUNTER_HANDSHAKE_ENDED,
	COUNTER_HANDSHAKE_LIMITED,
	COUNTER_HOST_DENIED,	  /* that port of the guest is not for host programs */
	COUNTER_CREDIT_STALLS,	  /* bytes for the guest waited until it had room for them */
	COUNTER_RX_STARVED,	  /* packets for the guest waited for buffers in ring 0 */
	COUNTER_DROPPED,	  /* packets that deserved no answer, chains of no use */
	COUNTER_MEMORY_REFUSED,	  /* connections: no memory for the buffer of one more */
	COUNTER_BANDWIDTH_WAITS,  /* as many bytes had passed as may */
	COUNTER_GUEST_CONNECT_MS, /* sum of the times behind it */
	COUNTER_GUEST_CONNECT_TIMES,
	COUNTER_HOST_CONNECT_MS = COUNTER_GUEST_CONNECT_TIMES + COUNTER_TIMES,
	COUNTER_HOST_CONNECT_TIMES,
	COUNTER_MAX = COUNTER_HOST_CONNECT_TIMES + COUNTER_TIMES,
};

/* Of a Counters message: it is no longer than the others. */
#define COUNTERS_PER_MESSAGE 7

enum connection_report {
	CONNECTION_REPORT_HANDSHAKE = 1, /* the CONNECT line is read */
	CONNECTION_REPORT_ASKING_GUEST,
	CONNECTION_REPORT_ASKING_HOST,
	CONNECTION_REPORT_OPEN,
	CONNECTION_REPORT_CLOSING,  /* the guest is to confirm the end */
	CONNECTION_REPORT_DRAINING, /* the guest is gone, the host program still reads */
	CONNECTION_REPORT_MAX,
};

/* Answers to one ConnectionsQuery at most, and entries of its table that a worker looks at. */
#define CONNECTIONS_PER_QUERY 32
#define CONNECTIONS_LOOKED_AT 4096

/* The end of the table, instead of where to go on. */
#define CONNECTIONS_END UINT32_MAX

/* The most of a packet's payload that a capture keeps: all of it. */
#define CAPTURE_PAYLOAD_MAX 65536

/*
 * A record of a capture: this, the packet's header of 44 bytes, and captured_len
 * bytes of its payload, which has payload_len. One packet of a SOCK_SEQPACKET socket.
 * The last one may be this alone.
 */
struct capture_prefix {
	uint32_t n_dropped; /* records before it that found no room */
	uint32_t payload_len, captured_len;
};
