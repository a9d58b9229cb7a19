/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One end of a connection, a guest's or a host program's. It sends a header, which names it
 * and says how much will come, and then bytes that depend on its name and their place; so
 * the other end, which may be in another process, sees any byte that is wrong, lost, twice
 * there or out of order. Of SOCK_SEQPACKET each message has such a header.
 *
 * A stream of which only one direction carries bytes, and more than may be unread, goes on
 * by what its reader says of its credit and by nothing else. So of the bystander, whom nobody
 * holds up, it has to move soon.
 *
 * An end is over when both directions are complete and the connection was closed in an
 * orderly way, or when it was reset, which is an error unless somebody may have done it.
 */

#include <stdbool.h>
#include <stdint.h>

#include "tests/chaos/shared.h"
#include "tests/frontend/guest.h"
#include "tests/frontend/socket.h"

/* In the order of the ports. */
enum end_kind {
	END_STREAM,
	END_MESSAGES,
	END_ONE_WAY, /* from who asked to who accepted, who sends its name alone */
	END_KINDS,
};

enum end_state {
	END_OPENING, /* asked for, not answered */
	END_OPEN,
	END_CLOSING, /* closed here; the guest waits for the answer */
	END_OVER,
};

struct end_header {
	uint64_t magic, id, len; /* len: bytes behind the header */
	uint32_t index, n;	 /* of messages: this one, and how many there will be */
};

struct end {
	struct watch watch;		     /* of a host program; its fd -1: a guest's */
	struct guest_connection *connection; /* of a guest */
	size_t vm, peer_vm;		     /* whose faults may reset it */
	bool has_messages, is_one_way, is_initiator;
	enum end_state state;
	struct end_header out, in;
	bool has_in;	      /* the header was read */
	uint64_t n_out, n_in; /* bytes, headers included; of messages: messages */
	int64_t opened_at, moved_at, paused_until;
	bool shuts_down; /* says that nothing comes any more, as soon as that is so */
	bool has_shut_down, has_read_end;
	bool can_read, can_write; /* of a host program, as far as is known */
	uint32_t packet_size;
	uint8_t partial[sizeof(struct end_header)]; /* of a header */
	struct dice dice;
};

/* Takes over the fd or the connection. dice decides what will be sent. */
void end_init(struct end *end, size_t vm, size_t peer_vm, struct dice *dice, enum end_kind kind);
void end_be_guest(struct end *end, struct guest_connection *connection, bool is_initiator);
void end_be_host(struct end *end, int fd, bool is_initiator);

/* Move what can be moved. May vm_fail(). */
void end_step(struct end *end);

/* Nothing has moved for longer than anything may last. */
bool end_is_stuck(const struct end *end);

/* The owner ends it at once, at whatever byte. */
void end_abort(struct end *end);

/* Who ends it is somebody else: an operator. */
void end_condemn(struct end *end);

/* One line of what it is waiting for. */
void end_describe(const struct end *end, char *ret_text, size_t size);

/* Free what it has, in any state; not unwatched yet. has_guest: the guest still lives. */
void end_free(struct end *end, bool has_guest);
