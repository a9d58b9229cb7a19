/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A small model of what a device has to do, run beside a worker's device in its rig:
 * guest, host programs and front do one thing at a time, chosen from outside, and after
 * each the packets, messages and bytes that came are compared with what the model
 * allows, and with what it demands once there are buffers enough.
 *
 * The model knows connections by what their two ends have said and seen, in 64-bit
 * positions of two streams. It shares no code with the device and looks into it in one
 * place only: to start a connection's counters near their wrap.
 *
 *   device_model.c        what is known, and whether what came agrees with it
 *   device_model_steps.c  what guest, host programs and front do
 */

#include "tests/unit/device_rig.h"

/* Where choices come from: a number below n (at most 65536), and whether to go on. */
struct model_choices {
	uint32_t (*choose)(void *context, uint32_t n);
	bool (*goes_on)(void *context);
	void *context;
};

/*
 * From a fresh rig to its end: at most n_steps, then all hang up and nothing may be left.
 * What differs ends the test.
 */
void model_run(const struct model_choices *choices, uint32_t n_steps);

/* ---- between the two files ---- */

#define MODEL_PEERS    8
#define MODEL_RSTS     200
#define MODEL_PACKETS  512
#define MODEL_LINE_MAX 32

enum model_phase {
	MODEL_FREE,
	MODEL_ASKED,	 /* REQUEST of the guest; the front has not answered */
	MODEL_ABANDONED, /* the same, and the guest gave up */
	MODEL_LINE,	 /* a host program whose line the device has not read to its end */
	MODEL_CALLED,	 /* it has; REQUEST is due, or was seen (is_known) */
	MODEL_OPEN,
	MODEL_GOODBYE, /* SHUTDOWN of both directions was seen: the guest's RST is awaited */
	MODEL_ENDED,   /* nothing more for the guest; the host program may still have to read */
};

struct model_peer {
	enum model_phase phase;
	struct rig_peer rig;
	uint32_t stream;
	uint64_t since; /* guest's time: of LINE, of the REQUEST, of GOODBYE */
	bool is_known;	/* CALLED: the guest has seen REQUEST */

	/* guest to host */
	uint32_t sent_base; /* counter of its first byte */
	uint64_t n_sent;    /* accepted by the device */
	uint64_t n_known;   /* of them, taken by the host side, as the guest was told */
	char ok[32];	    /* what a host program reads first */
	uint64_t ok_len, n_read;

	/* host to guest */
	uint32_t received_base;
	uint64_t n_written, n_received, n_consumed, n_told; /* told: consumed, as announced */
	uint32_t told_buf_alloc;
	uint64_t ends[MODEL_PACKETS]; /* of packets, behind n_told */
	uint32_t n_ends;

	uint32_t guest_said, device_said; /* SHUTDOWN flags */
	bool is_response_due, is_update_due;
	uint32_t n_asked;  /* CREDIT_REQUESTs in a row, and nothing new between them */
	uint64_t asked_at; /* the last one, or since when no packet may be sent: guest time */
	uint32_t n_sleeps; /* since the last CREDIT_UPDATE */

	char line[MODEL_LINE_MAX];
	uint32_t line_len, n_line_sent; /* LINE */
	bool is_line_bad;
	bool has_shut_write, has_shut_read, is_host_closed;
	bool is_unheard;    /* bytes came after has_shut_read, and there was room */
	bool is_dirty;	    /* closed with bytes unread: a RST is as good as SHUTDOWN */
	bool is_narrow;	    /* its socket holds little */
	bool loses;	    /* ENDED by the device: what was not written yet is lost */
	uint64_t n_certain; /* of n_sent: written before the device ended it */
	uint64_t ended_at;  /* ms: when draining began */
};

struct model_rst {
	uint64_t src_cid;
	uint32_t src_port, dst_port;
	uint16_t type;
};

struct model {
	const struct model_choices *choices;
	struct model_peer peers[MODEL_PEERS];
	struct model_rst rsts[MODEL_RSTS]; /* that have to come */
	uint32_t n_rsts;
	bool are_rings_stopped;
	uint64_t now, guest_now; /* ms */
	uint32_t n_streams, next_port;
	bool is_scarce; /* buffers are, for a while */
	bool is_batch;	/* the guest has more to put into its ring before the device looks */
	uint32_t n_packets[8];
};

extern struct model model;

uint32_t model_choose(uint32_t n);

/* A RST has to come: for a packet that nobody waits for, or for this connection. */
void model_expect_rst(uint64_t src_cid, uint32_t src_port, uint32_t dst_port, uint16_t type);
void model_expect_peer_rst(const struct model_peer *peer);

/* The guest's end is gone. With loses: so is what the host program has not got yet. */
void model_end_peer(struct model_peer *peer, bool loses);

/* The guest told its credit with a packet. */
void model_told(struct model_peer *peer);

/* Start the counters of a connection without bytes somewhere else than at 0. */
void model_move_counters(struct model_peer *peer);

/* Time goes on: what ends by it. */
void model_pass_time(uint32_t ms);

/* So little waits to be read that the host program's socket holds it for certain. */
bool model_has_room(const struct model_peer *peer);

/* Both directions of the host program's socket are shut. */
bool model_has_hung_up(const struct model_peer *peer);

/* Is there a buffer for packets to the guest that the device has not taken? */
bool model_has_buffers(void);

/* What came since the last time, compared. */
void model_absorb(void);

/* Up to len bytes to the host program, compared. false when there are no more now. */
bool model_host_reads(struct model_peer *peer, size_t len);

/* A free place, or NULL. */
struct model_peer *model_take_peer(enum model_phase phase);
void model_step(void);
