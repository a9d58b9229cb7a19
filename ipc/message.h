/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Messages between the front and a worker: packing, bounded decoding, and the
 * table that says which message may come from whom, in which state, with how
 * many fds. A message that the table does not permit is never handed out; the
 * receiver drops the peer.
 *
 * Decoding takes no heap: protobuf-c gets a static arena, so a decoded message
 * lives until the next decoding in this process (arena.h). Single-threaded.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/channel.h"
#include "ipc/vsockd.pb-c.h"

#define MESSAGE_VERSION 1

/* The file that comes with RingJournal is as long, and sealed. */
#define RING_JOURNAL_LEN 4096

enum message_direction {
	MESSAGE_TO_FRONT,
	MESSAGE_TO_WORKER,
	MESSAGE_RELAYED, /* in the table: to the front, and by it to another worker */
};

/* What the two ends have agreed on; each end keeps its own copy. */
enum message_state {
	MESSAGE_BEFORE_READY = 1 << 0,
	MESSAGE_SPARE = 1 << 1,	   /* READY was sent, Assign was not */
	MESSAGE_ASSIGNED = 1 << 2, /* Assign was sent */
	MESSAGE_FROZEN = 1 << 3,   /* it obeyed Handover, and HandoverResume has not come */
	MESSAGE_TAKING = 1 << 4,   /* HandoverPool was sent, HandoverCommit was not */
};

struct message_rule {
	Vsockd__Envelope__BodyCase type;
	const char *name;
	enum message_direction direction;
	uint32_t states; /* message_state bits in which it may be received */
	uint8_t fds_min, fds_max;
	bool is_command; /* it has a sequence, and Done is the answer */
};

/* The whole table, for tests and documents. */
extern const struct message_rule message_rules[];
extern const size_t n_message_rules;

const struct message_rule *message_rule(Vsockd__Envelope__BodyCase type);

/* The name of a message for a log line; never NULL. */
const char *message_name(Vsockd__Envelope__BodyCase type);

/*
 * Decode a packet received in `state`, one or several of them, by the end that
 * `direction` leads to.
 * Returns the message or NULL when it is malformed or not permitted;
 * *ret_reason then says why (a static string). The packet's fd stays in it.
 */
const Vsockd__Envelope *message_decode(const struct channel_packet *packet,
				       enum message_direction direction, enum message_state state,
				       const char **ret_reason);

/*
 * An envelope around a body, which says itself of what type it is; one without a
 * sequence. The body stays the caller's and has to outlive it.
 */
void message_wrap(ProtobufCMessage *body, Vsockd__Envelope *ret_envelope);

/* Pack an envelope; fd -1 for none, stays the caller's. */
void message_encode(const Vsockd__Envelope *envelope, int fd, struct channel_packet *ret_packet);

/* One of HandoverConnections: what the front has to know of a connection. */
struct handover_claim {
	uint32_t index;	   /* its place in the table: Connect has named it */
	uint32_t endpoint; /* the front's name, if it has one: */
	bool has_endpoint;
	bool has_socket;    /* the front has given it */
	bool awaits_answer; /* Connect was sent, Connected has not come */
};
#define HANDOVER_CLAIMS_MAX 24

/* at: below HANDOVER_CLAIMS_MAX. */
void message_put_claim(Vsockd__HandoverConnections *told, uint32_t at,
		       const struct handover_claim *claim);
struct handover_claim message_claim(const Vsockd__HandoverConnections *told, uint32_t at);

/* Of RingStart: what comes and goes in messages, where there is no eventfd for it. */
enum {
	RING_KICKED_IN_BAND = 1 << 0,
	RING_CALLED_IN_BAND = 1 << 1,
	RING_FAILS_IN_BAND = 1 << 2,
};

/* What a saved device state says of its source. */
enum {
	STATE_FLAG_DRIVER = 1 << 0,	/* rings 0 and 1 ran since the last reset */
	STATE_FLAG_EVENT_RING = 1 << 1, /* ring 2 was the back-end's */
	STATE_FLAG_UNKNOWN = 1 << 2,	/* an empty state; never in a stream */
};

/* How the transfer of a state ended. */
enum state_reason {
	STATE_GOOD,
	STATE_NOT_OURS,
	STATE_OTHER_VERSION,
	STATE_WRONG_LENGTH,
	STATE_WRONG_CHECKSUM,
	STATE_BROKEN_PIPE,
	STATE_REASON_MAX,
};

/*
 * What a Report may say. The texts are the front's: a worker chooses a line
 * and three numbers, no more.
 */
enum report_event {
	REPORT_RING_BROKEN = 1,	 /* ring, reason (enum report_ring_reason), value */
	REPORT_HANDSHAKE_FAILED, /* endpoint, reason (enum report_handshake_reason) */
	REPORT_CONNECTION_LIMIT, /* limit */
	REPORT_HANDSHAKE_LIMIT,	 /* limit */
	REPORT_PACKET_DROPPED,	 /* total so far, operation of this one */
	REPORT_PEER_MISBEHAVED,	 /* host port, guest port, rule */
	REPORT_CONNECT_FAILED,	 /* host port, 1: for want of an answer */
	REPORT_MESSAGE_TOO_LONG, /* host port, guest port, length: the guest can't take it */
	REPORT_MESSAGE_REFUSED,	 /* host port, guest port, length: the host's socket didn't */
	REPORT_MESSAGES_UNREAD,	 /* host port, guest port, how many wait for the host program */
	REPORT_RATE_LIMIT,	 /* bytes a second, how often so far */
	REPORT_MEMORY_LIMIT,	 /* bytes for buffers, how many were refused so far */
	REPORT_SHORTAGE,	 /* host port, guest port, errno: the kernel ran out of something */
	REPORT_RING_POLLED,	 /* ring, errno: its kicks cannot be watched for */
	REPORT_EVENT_MAX,
};

enum report_ring_reason {
	REPORT_RING_AVAIL_JUMP = 1, /* avail idx moved by more than the ring's size */
	REPORT_RING_BAD_INDEX,	    /* descriptor index outside the ring */
	REPORT_RING_LOOP,	    /* chain longer than the ring */
	REPORT_RING_BAD_INDIRECT,   /* indirect table: length, nesting, place */
	REPORT_RING_BAD_PLACE,	    /* a part of the ring lies outside guest memory */
	REPORT_RING_REASON_MAX,
};

enum report_handshake_reason {
	REPORT_HANDSHAKE_MALFORMED = 1,
	REPORT_HANDSHAKE_TIMEOUT,
	REPORT_HANDSHAKE_ENDED,	  /* the host program left first */
	REPORT_HANDSHAKE_REFUSED, /* the guest answered RST */
	REPORT_HANDSHAKE_NO_ANSWER,
	REPORT_HANDSHAKE_DENIED, /* that port is not for host programs */
	REPORT_HANDSHAKE_NO_MEMORY,
	REPORT_HANDSHAKE_REASON_MAX,
};
