/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The connections of one guest: a fixed table, found by the pair of ports, the CID
 * at the other end and the type, with lists for those that have something to do.
 * That end is a socket in any case: a host program's, or one of a pair whose other
 * end another guest's worker has. What a connection may be in:
 *
 *   guest asks:  REQUESTED -> ESTABLISHED -> ... ABANDONED when the guest gave up,
 *                OPENING in between where the socket takes its time to connect
 *   host asks:   HANDSHAKE -> CONNECTING -> ESTABLISHED -> ... no HANDSHAKE
 *                where the port is known
 *   the end:     CLOSING (we said SHUTDOWN, the guest's RST is due),
 *                DRAINING (the guest is gone, the host program still reads),
 *                DEAD (no socket any more; a last packet or message is due)
 *
 * No heap after connections_init(); no system calls.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/budget.h"
#include "worker/buffer.h"
#include "worker/credit.h"
#include "worker/handshake.h"

struct link {
	struct link *next, *previous;
};

enum connection_state {
	CONNECTION_FREE,
	CONNECTION_HANDSHAKE,
	CONNECTION_CONNECTING,
	CONNECTION_REQUESTED,
	CONNECTION_ABANDONED,
	CONNECTION_OPENING,
	CONNECTION_ESTABLISHED,
	CONNECTION_CLOSING,
	CONNECTION_DRAINING,
	CONNECTION_DEAD,
};

/* Packets that are due to the guest: never lost, sent when rx buffers allow. */
enum {
	CONNECTION_SEND_RST = 1 << 0,
	CONNECTION_SEND_REQUEST = 1 << 1,
	CONNECTION_SEND_RESPONSE = 1 << 2,
	CONNECTION_SEND_CREDIT_UPDATE = 1 << 3,
	CONNECTION_SEND_CREDIT_REQUEST = 1 << 4,
};

/* Messages that are due to the front. */
enum {
	CONNECTION_TELL_CONNECT = 1 << 0,
	CONNECTION_TELL_OPENED = 1 << 1,
	CONNECTION_TELL_CLOSED = 1 << 2,
	CONNECTION_TELL_CANCEL = 1 << 3,
	CONNECTION_TELL_ANSWERED = 1 << 4,
};

/* Each kind has one duration, so a list in order of arming is in order of time. */
enum connection_timer {
	CONNECTION_TIMER_HANDSHAKE,
	CONNECTION_TIMER_CONNECT,
	CONNECTION_TIMER_RETRY,
	CONNECTION_TIMER_CREDIT,
	CONNECTION_TIMER_MESSAGE,
	CONNECTION_TIMER_CLOSING,
	CONNECTION_TIMER_DRAINING,
	CONNECTION_TIMERS,
};

#define CONNECTION_HANDSHAKE_MS 5000
#define CONNECTION_CONNECT_MS	2000 /* from the moment the guest can see the REQUEST */
#define CONNECTION_RETRY_MS	250  /* from the RST of a guest that is to be asked again */
#define CONNECTION_CREDIT_MS	20
#define CONNECTION_MESSAGE_MS	200
#define CONNECTION_CLOSING_MS	8000 /* as long as Linux waits for a RST */
#define CONNECTION_DRAINING_MS	30000

/* What is only told about, and believed by nobody. */
struct connection_history {
	uint64_t since;		       /* ms, monotonic: when it was asked for */
	uint64_t to_guest, from_guest; /* bytes of the stream */
};

struct connection {
	uint8_t state;		/* enum connection_state */
	uint8_t due;		/* CONNECTION_SEND_... */
	uint8_t tell;		/* CONNECTION_TELL_... */
	uint8_t timer;		/* enum connection_timer; CONNECTION_TIMERS: none */
	uint8_t guest_shutdown; /* what the guest will not do any more, PACKET_SHUTDOWN_... */
	uint8_t our_shutdown;	/* what the guest was told */
	uint8_t read_ahead;	/* how many rx buffers the next read is worth */
	bool is_from_host;
	bool is_quiet; /* the host program gets no OK line */
	bool is_hashed;
	bool is_readable, is_writable; /* until the socket says EAGAIN */
	bool has_hung_up;	       /* the host program has closed */
	bool has_ended;		       /* the host program's stream was read to its end */
	bool is_deaf;		       /* the host program reads no more */
	bool has_shut_write;	       /* shutdown(SHUT_WR) was done */
	bool has_rested;	       /* nothing was written since the last EPOLLOUT */
	bool is_reset;		       /* the guest's end was, see Closed in vsockd.proto */
	bool ends_in_rst;	       /* the other guest's end was: RST behind its last byte */
	bool has_asked_credit;	       /* CREDIT_REQUEST is out, nothing new since */
	uint8_t n_unanswered;	       /* CREDIT_REQUESTs in a row that nothing answered */
	uint8_t n_asked;	       /* CREDIT_REQUESTs whose answer may be on its way */
	bool tells_empty;	       /* the guest announces messages without a byte, too */
	uint16_t type;
	uint16_t n_retries; /* how often the guest is still asked that refuses */
	int fd;
	uint32_t generation;		/* tells events of a former life apart */
	uint32_t endpoint;		/* the front's name for fd */
	uint32_t buffer_max;		/* bytes that may wait in buffer: connections.budget */
	uint32_t guest_port, host_port; /* host_port: of the other end, whose CID is: */
	uint32_t peer_cid;
	uint8_t early_len, early_skip;
	uint8_t early[HANDSHAKE_LINE_MAX]; /* the handshake, then stream bytes read with it */
	uint64_t deadline;		   /* ms, monotonic */
	struct connection_history history;
	struct credit credit;
	struct buffer buffer; /* from the guest, not yet taken by the host program */
	/* SOCK_SEQPACKET, see seqpacket.c */
	bool has_open;	      /* the last message in the buffer is not whole */
	bool is_finished;     /* the host program sends no more; what it sent may wait */
	bool is_doubtful;     /* an empty message was seen, or the end */
	bool ends_record;     /* what `rest` or n_empty is of: another guest's MSG_EOR */
	uint8_t n_empty;      /* empty messages of the host program, due to the guest */
	uint8_t n_maybe;      /* perhaps more of them, if another message follows */
	uint32_t n_kept;      /* messages in the buffer, each behind its length */
	uint32_t open_len;    /* what has come of the last one */
	uint32_t next_len;    /* of the host program's next message; 0: not known */
	uint64_t doubt_since; /* device.n_looks */
	struct buffer rest;   /* of its last message: no rx buffer was there for it */
	struct connection *next_in_bucket;
	struct link ready_link; /* connections.ready or held: something for the guest */
	struct link flush_link; /* connections.flush: buffer can be written */
	struct link tell_link;	/* connections.tell */
	struct link timer_link; /* connections.timers[timer]; while FREE: the free list */
};

struct connections {
	struct connection *all;
	uint32_t n_max;	    /* size of the table */
	uint32_t n_allowed; /* limit of this device, at most half of n_max */
	uint32_t n_used;
	uint32_t n_handshakes;
	uint32_t n_touched; /* table entries from here on were never used */
	struct connection **buckets;
	uint32_t n_buckets; /* a power of two */
	uint32_t next_port; /* host-side port of the next host connection */
	struct budget budget;
	struct link free, ready, flush, tell;
	struct link held; /* as ready, but not before more bytes may pass */
	struct link timers[CONNECTION_TIMERS];
};

#define CONNECTION_OF(member, link_pointer)                                                        \
	((struct connection *)(void *)((uint8_t *)(link_pointer)-offsetof(struct connection,       \
									  member)))

/*
 * A table for devices of up to n_allowed_max connections. It has twice as many
 * entries: the front counts sockets, and an entry may outlive its socket, or
 * never get one, while a RST waits for an rx buffer. A guest is refused at
 * n_allowed, so there is always an entry for a socket that the front counted.
 */
bool connections_init(struct connections *connections, uint32_t n_allowed_max);

/* Random start of host-side ports, mapped into 2^30 .. 2^31 - 1. */
void connections_assign(struct connections *connections, uint32_t n_allowed, uint32_t first_port);

/* A fresh connection in the given state, not hashed; NULL when n_max or more are in use. */
struct connection *connection_take(struct connections *connections, enum connection_state state,
				   uint32_t n_max);

/*
 * The entry of that index, of a table whose entries are taken by rising index and in
 * no other way so far; the ones between are free. NULL when it can't be that one.
 */
struct connection *connection_take_at(struct connections *connections, uint32_t index,
				      enum connection_state state);

/*
 * Set memory aside for its buffer, of at most len bytes. Returns how many it may
 * hold; 0: the budget is used up. connection_free() gives it back.
 */
uint32_t connection_reserve(struct connections *connections, struct connection *connection,
			    uint32_t len);

/* Forget it. The fd is closed, nothing is due any more. */
void connection_free(struct connections *connections, struct connection *connection);

uint32_t connection_index(const struct connections *connections,
			  const struct connection *connection);

struct connection *connection_find(const struct connections *connections, uint32_t peer_cid,
				   uint32_t guest_port, uint32_t host_port, uint16_t type);
void connection_hash(struct connections *connections, struct connection *connection);
void connection_unhash(struct connections *connections, struct connection *connection);

/* Is another guest at the other end? */
bool connection_has_sibling(const struct connection *connection);

/* Does something of the guest's wait that its peer can be given? */
bool connection_has_unsent(const struct connection *connection);

/* A host-side port that no connection to this guest port uses, of any type. */
uint32_t connection_next_port(struct connections *connections, uint32_t guest_port);

void connection_arm(struct connections *connections, struct connection *connection,
		    enum connection_timer timer, uint64_t now);
void connection_disarm(struct connection *connection);
/* How long a timer runs at most. */
uint32_t connection_timer_ms(enum connection_timer timer);
/* The timer that another process armed, in their order; false when it isn't. */
bool connection_rearm(struct connections *connections, struct connection *connection,
		      enum connection_timer timer);

/* Timers that concern the guest stand still while its rings do; draining goes on. */
#define CONNECTION_TIMERS_DRAINING (1u << CONNECTION_TIMER_DRAINING)
#define CONNECTION_TIMERS_GUEST	   ((1u << CONNECTION_TIMERS) - 1 - CONNECTION_TIMERS_DRAINING)

/* The earliest deadline of a set of timers; UINT64_MAX when none runs. */
uint64_t connections_deadline(const struct connections *connections, uint32_t timers);
/* One that is over, disarmed, its timer in *ret_timer; NULL when there is none. */
struct connection *connections_expired(struct connections *connections, uint32_t timers,
				       uint64_t now, enum connection_timer *ret_timer);

void link_init(struct link *link);
bool link_is_empty(const struct link *link);		/* a list's head, or a link in no list */
void link_append(struct link *list, struct link *link); /* no-op when in a list already */
void link_prepend(struct link *list, struct link *link);
void link_remove(struct link *link);
