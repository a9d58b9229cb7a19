/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A device that goes on in another worker (design: "Handover"). The worker that
 * stops is frozen between two packets and tells all of its device in messages of
 * fixed size; the one that goes on checks them like any input: who tells may be
 * in the hands of a guest, and must win nothing but what it has.
 *
 *   handover.c       what a connection is, in bytes, and what it may be
 *   handover_tell.c  the worker that stops
 *   handover_take.c  the worker that goes on
 *
 * A new member of struct connection that has to survive is a line in the table of
 * handover.c; raise MESSAGE_VERSION with it. Sockets are told to epoll anew, which
 * then says of each what is possible; so is_readable, is_writable and has_hung_up
 * are not handed over. No heap. System calls: those of the channel, epoll_ctl,
 * mmap and munmap.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/message.h"
#include "worker/buffer.h"
#include "worker/connection.h"

struct device;

/* Enough for the table and all groups of the credit; handover.c checks it. */
#define HANDOVER_RECORD_MAX 576

/*
 * The tape: for each connection the length of its record, 32 bits, the record, and the
 * chunks of its buffer and of the rest of a message. It lies where bytes of connections
 * lie otherwise, in chunks that the pool has besides, so that the front has little to
 * relay while the guest waits. The worker before may write there as long as it lives:
 * what stands in it is copied once, and then looked at.
 */

/* What a HandoverList lists. */
enum handover_list {
	HANDOVER_READY,
	HANDOVER_TELL,
	HANDOVER_TIMERS,				     /* and one for each timer */
	HANDOVER_TAPE = HANDOVER_TIMERS + CONNECTION_TIMERS, /* its chunks */
};
#define HANDOVER_LIST_MAX 32 /* items in one message */
#define HANDOVER_WORDS	  24 /* of HandoverMore */

enum handover_phase {
	HANDOVER_NONE,
	HANDOVER_TELLING,
	HANDOVER_TOLD,
	HANDOVER_TAKING,
};

enum handover_stage {
	HANDOVER_STAGE_DEVICE,
	HANDOVER_STAGE_COUNTERS,
	HANDOVER_STAGE_RINGS,
	HANDOVER_STAGE_TAPE,
	HANDOVER_STAGE_CONNECTIONS,
	HANDOVER_STAGE_LISTS,
	HANDOVER_STAGE_ORPHANS,
	HANDOVER_STAGE_END,
};

struct handover {
	enum handover_phase phase;
	uint32_t sequence;  /* of Handover, until it is answered */
	struct buffer tape; /* all of it; while taking: what was not read so far */
	/* While telling: what the channel took last. */
	enum handover_stage stage;
	uint32_t at;		 /* of the stage's things */
	uint32_t chunk;		 /* the next of the tape's */
	const struct link *link; /* of the list in hand */
	/* While taking. */
	bool is_bad;	 /* nothing of it is believed any more */
	bool has_device; /* HandoverDevice came */
	uint32_t n_counters;
	uint32_t n_chunks; /* of the tape, still to be named */
	bool has_lists;	   /* no connection comes behind them */
	bool is_checked;   /* nothing more is taken */
	uint32_t rings;	   /* bit per ring that came */
	uint32_t n_bare;   /* entries that the front does not count */
};

/* Sockets that the front gave for connections that are still to be told, by endpoint. */
struct handover_sockets {
	int *all; /* each + 1; 0: none */
	uint32_t n_max;
	uint32_t n_touched; /* entries from here on were never used */
};

/* ---- handover.c ---- */

/*
 * The most that a tape may need, with buffers of so many bytes; the pool of a worker has
 * room for it besides.
 */
uint64_t handover_tape_len(uint32_t n_connections, uint32_t buffer_size);

/* The record of a connection; its length is returned. Times are of this device. */
size_t handover_put_record(const struct device *device, const struct connection *connection,
			   uint8_t ret_bytes[static HANDOVER_RECORD_MAX]);
/*
 * Fill an entry, of which fd, endpoint and links are set, from a record. false when
 * no connection can be like that.
 */
bool handover_get_record(const struct device *device, struct connection *connection,
			 const uint8_t *bytes, size_t len);

/* What the front has to know of a connection, which follows from the rest. */
bool handover_has_socket(const struct connection *connection);
bool handover_has_endpoint(const struct connection *connection);
bool handover_awaits_answer(const struct connection *connection);
/* Of its buffer, then of the rest of a message. */
uint32_t handover_n_chunks(const struct connection *connection);
/* Found by its ports. */
bool handover_is_hashed(const struct connection *connection);

/* ---- handover_tell.c ---- */

/* Stop. 0, or negative errno: it can't be now, and nothing has changed. */
int handover_freeze(struct device *device, uint32_t sequence);
/* Go on. */
void handover_resume(struct device *device);
/* Tell on. 0 when all is told, else what channel_send() says. */
int handover_tell(struct device *device);

/* ---- handover_take.c ---- */

/* As many as there may be endpoints. false when there is no memory. */
bool handover_sockets_init(struct handover_sockets *sockets, uint32_t n_max);
/* Close those that nobody took. */
void handover_sockets_close(struct handover_sockets *sockets);

/* From here on the device takes. Owns the fd. 0 or negative errno. */
int handover_begin_taking(struct device *device, uint64_t size, int fd);
/* One message of the other worker; what is wrong shows in the check. Owns the fd. */
void handover_take(struct device *device, const Vsockd__Envelope *envelope, int fd);
/* 0 or -EBADMSG. */
int handover_check(struct device *device);
/* Serve. false when it was not checked. */
bool handover_commit(struct device *device);
