/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The sockets of one device: host programs', and ends of pairs whose other end
 * another guest's worker has. The front keeps a duplicate of each socket that it
 * handed to the worker, under a number that the worker names when it is done with
 * it: so a crash ends exactly the connections that lived, and a replacement can be
 * given the same sockets. Pure book-keeping with a fixed table; closes fds, makes
 * none.
 */

#include <stdbool.h>
#include <stdint.h>

enum endpoint_state {
	ENDPOINT_FREE,
	ENDPOINT_CONNECTING, /* the worker asked; the spawner is asked, or will be */
	ENDPOINT_REFUSED,    /* the worker is still to be told */
	ENDPOINT_WAITING,    /* connected or accepted; the worker is still to get the fd */
	ENDPOINT_OPEN,	     /* the worker has the fd */
	ENDPOINT_LOST,	     /* it died; its successor is to reset the guest's end */
	ENDPOINT_RESETTING,  /* the successor knows, and has not done it yet */
	ENDPOINT_ENDING,     /* the worker has the fd; it is to be told that the pair was reset */
	ENDPOINT_GONE,	     /* nothing is to be told any more, but it stands in the list */
};

#define ENDPOINT_NONE	  UINT32_MAX
#define ENDPOINT_REFUSAL  (UINT32_MAX - 1)
#define ENDPOINT_HOST_CID 2u

/* VIRTIO_VSOCK_TYPE_... */
enum {
	ENDPOINT_STREAM = 1,
	ENDPOINT_MESSAGES = 2,
};

struct endpoint {
	uint8_t state; /* enum endpoint_state */
	uint8_t type;  /* ENDPOINT_STREAM, ENDPOINT_MESSAGES */
	bool is_accepted;
	bool is_cancelled;   /* the guest gave up a CONNECTING one */
	bool is_held;	     /* a CONNECTING one waits for other_device */
	bool is_direct;	     /* accepted for guest_port: no CONNECT, no OK */
	bool is_pending;     /* on its way to be connected */
	bool is_handed;	     /* a worker that stops has named it, see handover.c */
	bool is_answered;    /* an accepted one of a pair: this guest has accepted it, too */
	uint16_t generation; /* a late answer of the spawner is told apart by it */
	int fd;		     /* owned; -1: none */
	int peer_fd;	     /* of an ENDING one: owned, the other end of the pair; -1: none */
	uint32_t request;    /* the worker's name for a CONNECTING one */
	uint32_t cid;	     /* who is at the other end: the host, or a guest */
	uint32_t client;     /* of the control socket, who has the other end; 0: nobody */
	uint32_t pid;	     /* of it, for the operator; 0: ask the socket */
	uint16_t other_device;
	uint32_t other; /* the other end of a pair, in other_device; ENDPOINT_NONE: cut off */
	bool has_ports; /* the guest knows of it, by these: */
	uint32_t guest_port, port;
	int32_t status;			   /* of a REFUSED one: negative errno */
	uint64_t give_up_at;		   /* ms: no further attempt to connect */
	uint32_t next;			   /* in the free list or the list of those to be told */
	uint64_t next_held, previous_held; /* siblings.c */
};

struct endpoints {
	struct endpoint *all;
	uint32_t n_max, n_used;
	uint32_t first_free;
	uint32_t first_untold, last_untold;
	/* By the worker's number, 2 * n_max of them; ENDPOINT_NONE: free, or ENDPOINT_REFUSAL. */
	uint32_t *requests;
	uint32_t n_refusals;
	uint32_t n_peers; /* entries with a peer_fd */
};

/* Allocates the table. false when there is no memory. */
bool endpoints_init(struct endpoints *endpoints, uint32_t n_max);

/*
 * The same in memory that is there, for up to n_most entries and all zero; of no
 * use until endpoints_resize() says how many there may be. That is called while no
 * entry is used; generations go on.
 */
uint64_t endpoints_memory(uint32_t n_most);
void endpoints_place(struct endpoints *endpoints, void *memory, uint32_t n_most);
void endpoints_resize(struct endpoints *endpoints, uint32_t n_max);

/*
 * Whether there may be no more: as many files are counted for a device as it may have
 * entries, and one with a peer_fd takes two.
 */
bool endpoints_are_full(const struct endpoints *endpoints);

/* A free entry, now in state; ENDPOINT_NONE when the table is full. */
uint32_t endpoints_take(struct endpoints *endpoints, enum endpoint_state state);

/* Close the fd, free the entry. */
void endpoints_release(struct endpoints *endpoints, uint32_t index);

/* Queue an entry for the worker: REFUSED, WAITING, LOST or ENDING. */
void endpoints_tell(struct endpoints *endpoints, uint32_t index);
/* The first that is to be told; ENDPOINT_NONE when there is none. */
uint32_t endpoints_untold(const struct endpoints *endpoints);
/* It was told: REFUSED and GONE entries are freed, LOST ones RESETTING, others OPEN. */
void endpoints_told(struct endpoints *endpoints);

/* The worker has its socket. */
bool endpoint_is_at_worker(const struct endpoint *endpoint);

/* The entry if it exists and is in that state; NULL otherwise. */
struct endpoint *endpoints_find(struct endpoints *endpoints, uint32_t index,
				enum endpoint_state state);

/* The worker says that it has closed it. false when it had nothing to close. */
bool endpoints_closed(struct endpoints *endpoints, uint32_t index);

/*
 * A worker may ask while the last entries go to host programs of which it does not
 * know yet: such a request is refused without an entry. The number of one whose
 * worker is still to be told, ENDPOINT_NONE when there is none; and that it was told.
 */
void endpoints_refuse(struct endpoints *endpoints, uint32_t request);
uint32_t endpoints_refusal(const struct endpoints *endpoints);
void endpoints_refusal_told(struct endpoints *endpoints, uint32_t request);

/*
 * The other end of the pair was reset, or refused it: the fd is closed where the
 * worker has no other, and the worker is told if it is to know. peer_fd, that other end
 * or -1, becomes the entry's: it is closed at once, or behind what the worker is
 * told, which without a word would take its end for an orderly one; at once, too,
 * when the table is full.
 */
void endpoints_end(struct endpoints *endpoints, uint32_t index, int peer_fd);

/*
 * The worker died. Every fd is closed; what the guest knows of is LOST and
 * queued for the next worker, the rest is free. Returns how many were OPEN.
 */
uint32_t endpoints_lose(struct endpoints *endpoints);

/* The guest's connections are gone: all entries are. */
void endpoints_clear(struct endpoints *endpoints);
