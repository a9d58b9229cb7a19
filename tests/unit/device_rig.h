/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A worker's device in this process, without its sandbox: guest memory in a
 * memfd, three rings laid out by hand, a front at the other end of a real
 * channel, and host programs at the other ends of socketpairs. One rig at a time;
 * every helper ends the test when something is not as it has to be.
 *
 * The rig is the guest's driver, the front and the host programs; it shares no
 * code with the device but the names of fields and messages.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker/device.h"

#define RIG_CID		 UINT64_C(42)
#define RIG_GUEST_BASE	 UINT64_C(0x100000000)
#define RIG_USER_BASE	 UINT64_C(0x7f1200000000)
#define RIG_MEMORY_SIZE	 UINT64_C(0x2000000)
#define RIG_GUEST_BUFFER (256u * 1024) /* buf_alloc of the guest's sockets */

#define RIG_F_STREAM	 (UINT64_C(1) << 0)
#define RIG_F_SEQPACKET	 (UINT64_C(1) << 1)
#define RIG_F_NO_IMPLIED (UINT64_C(1) << 2)
#define RIG_F_INDIRECT	 (UINT64_C(1) << 28)
#define RIG_F_EVENT_IDX	 (UINT64_C(1) << 29)

#define RIG_RANGES_MAX 4

struct rig_options {
	uint64_t bytes_per_second, buffer_memory;
	bool is_quiet;
	uint32_t wait_ms, poll_us;
	struct filter_range incoming[RIG_RANGES_MAX];
	uint32_t n_incoming;
	uint32_t n_connections; /* 0: 16 */
	uint32_t n_handshakes;	/* 0: 8 */
	uint32_t buffer_size;	/* 0: 64 KiB */
	uint32_t message_size;	/* the longest that a host socket takes; 0: 200 KiB */
	uint32_t num;		/* size of the rings; 0: 128 */
	uint64_t features;
	bool is_polled; /* no kick fds */
	bool is_idle;	/* memory and features are set, no ring is started */
};

/* The driver's side of a ring; places are offsets into the memory. */
struct rig_ring {
	uint16_t num;
	uint64_t desc, avail, used;
	uint16_t avail_idx, used_idx, next_desc;
	int kick, call, error; /* eventfds of the rig's own */
};

/* A message of the worker, its numbers in the order of its fields. */
struct rig_told {
	Vsockd__Envelope__BodyCase type;
	uint64_t values[5];
};

struct rig_packet {
	struct packet_header header;
	uint32_t used_len;
	uint8_t payload[PACKET_PAYLOAD_MAX];
};

/* One connection as guest and host program see it. */
struct rig_peer {
	int host;      /* the host program's socket */
	uint16_t type; /* 0: a stream */
	uint32_t request, endpoint;
	uint32_t guest_port, host_port;
	uint32_t cid;		     /* whose host_port is; 0: the host's */
	uint32_t buf_alloc, fwd_cnt; /* the guest's */
};

struct rig_buffer {
	uint64_t guest_address;
	uint32_t len;
	uint16_t flags; /* RIG_WRITE or 0; NEXT is the rig's business */
};
#define RIG_NEXT     1
#define RIG_WRITE    2
#define RIG_INDIRECT 4

#define RIG_ENDPOINTS 4096

struct rig {
	struct rig_options options; /* as chosen */
	struct device device;
	int memory_fd;
	uint8_t *memory;
	struct rig_ring rings[RINGS];
	uint64_t next_tx, next_rx; /* where the next buffers go */
	int front;
	int epoll;
	int pool_fd;
	bool is_attached;
	uint32_t in_band; /* RING_..._IN_BAND of the next ring that is started */
	uint32_t sequence;
	bool has_done;
	int32_t done_status;
	uint32_t done_value;
	struct rig_told told[1024];
	uint32_t n_told;
	uint64_t counters[COUNTER_MAX]; /* as last told, the first n_counters of them */
	uint32_t n_counters;
	uint32_t n_endpoints;
	int copies[RIG_ENDPOINTS]; /* the front's duplicates; -1 when closed was told */
	uint64_t random;
	void (*after_run)(void); /* writable: NULL leaves the worker alone */
	bool has_run;		 /* private: it is under way */
};

extern struct rig rig;
/* Called whenever rig_run() has left nothing to do, from the end of rig_start() on. */
extern void (*rig_after_run)(void);

void rig_start(const struct rig_options *options);
void rig_end(void);

/* A worker's device as such, for the rig's options; and its end. */
void rig_start_device(struct device *device, int *ret_front, int *ret_epoll, int *ret_pool);
void rig_end_device(struct device *device, int *front, int *epoll, int *pool);

/* Wake-ups of the worker until there is nothing left to do. */
void rig_run(void);
void rig_sleep(uint64_t ms); /* time passes, then rig_run() */

uint32_t rig_random(void);
/* Byte number `at` of stream number `stream`. */
uint8_t rig_byte(uint32_t stream, uint64_t at);

/* ---- the front ---- */

/* Send a command, run; the status of its Done. rig.done_value is set. */
int rig_command(Vsockd__Envelope *envelope, int fd);
int rig_command_of(ProtobufCMessage *body, int fd);
/* bytes_per_second, buffer_memory and the incoming ports from now on; the rest is not looked at. */
void rig_limit(const struct rig_options *options);
void rig_post(const Vsockd__Envelope *envelope, int fd); /* only send */
void rig_collect(void);					 /* read what the worker said */
void rig_note_told(const Vsockd__Envelope *envelope);
/* Take the first message of that type; false when there is none. */
bool rig_take_told(Vsockd__Envelope__BodyCase type, struct rig_told *ret);
void rig_expect_told(Vsockd__Envelope__BodyCase type, struct rig_told *ret);
void rig_expect_report(enum report_event event, struct rig_told *ret);
bool rig_is_closed(uint32_t endpoint); /* the worker said Closed */

int rig_ring_start(uint32_t ring, uint16_t avail_idx, bool from_used_index);
uint16_t rig_ring_stop(uint32_t ring);
void rig_ring_enable(uint32_t ring, bool is_enabled);
void rig_stop_rings(void);  /* 0 and 1 */
void rig_start_rings(void); /* where they were stopped */
int rig_memory_add(uint64_t mmap_offset, uint64_t size, bool is_staged);
int rig_memory_commit(void);
void rig_reset(void);

/* An endpoint of the front: the worker's end of a new socketpair; the other in *ret_host. */
uint32_t rig_endpoint(uint16_t type, int *ret_host, int *ret_worker);
uint32_t rig_endpoint_of(int worker); /* of a socket that is there already */
uint32_t rig_accept(int *ret_host);   /* a stream */
uint32_t rig_accept_of(uint16_t type, int *ret_host);
uint32_t rig_accept_direct(int *ret_host, uint32_t guest_port); /* no CONNECT */
/* Another guest's connection, to be named by cid and both ports of peer. */
void rig_sibling_asks(struct rig_peer *peer);
void rig_peer_reset(const struct rig_peer *peer);
/* The same, with the endpoint's socket on its way. */
void rig_connected_later(const struct rig_peer *peer, int worker);
void rig_connected(struct rig_peer *peer);	     /* the front's answer to Connect */
void rig_refused(struct rig_peer *peer, int status); /* negative errno */

/* ---- the driver ---- */

/* n rx buffers of len bytes, one descriptor each. */
void rig_offer(uint32_t n, uint32_t len);
/* A chain of any buffers at any place. Returns its head. */
uint16_t rig_put_chain(uint32_t ring, const struct rig_buffer *buffers, size_t n);
/* Room for bytes in the part of memory that is for tx. */
uint64_t rig_place(size_t len);
uint8_t *rig_at(uint64_t guest_address);

/* A packet into ring 1, header and payload in descriptors of their own. */
void rig_put(const struct packet_header *header, const void *payload);
void rig_send(const struct packet_header *header, const void *payload); /* and run */
uint32_t rig_n_sent(void); /* chains of ring 1 that came back since the last call */

/* The next chain of ring 0 that came back. */
bool rig_take(struct rig_packet *ret);
bool rig_has_packet(void);
/* It has to be this one, from a host port to a guest port of peer. */
const struct rig_packet *rig_expect(const struct rig_peer *peer, enum packet_op op);
void rig_expect_no_packet(void);
void rig_expect_rst(uint64_t src_cid, uint32_t src_port, uint32_t dst_port, uint16_t type);

uint16_t rig_used_index(uint32_t ring);
uint64_t rig_calls(uint32_t ring); /* since the last call */

/* ---- guest and host program ---- */

struct packet_header rig_header(const struct rig_peer *peer, enum packet_op op);
void rig_say(const struct rig_peer *peer, enum packet_op op, uint32_t flags);
void rig_rw(const struct rig_peer *peer, const void *bytes, uint32_t len);
void rig_rw_flags(const struct rig_peer *peer, const void *bytes, uint32_t len, uint32_t flags);

/* Open to the end; needs rx buffers for one packet each. */
struct rig_peer rig_ask(uint32_t guest_port, uint32_t host_port); /* REQUEST, up to Connect */
struct rig_peer rig_ask_sibling(uint32_t guest_port, uint32_t cid, uint32_t host_port);
struct rig_peer rig_guest_connects(uint32_t guest_port, uint32_t host_port);
struct rig_peer rig_host_asks(uint32_t guest_port); /* CONNECT, up to REQUEST */
struct rig_peer rig_host_connects(uint32_t guest_port);
/* The same, with messages. */
struct rig_peer rig_guest_connects_messages(uint32_t guest_port, uint32_t host_port);
struct rig_peer rig_host_connects_messages(uint32_t guest_port);

void rig_host_writes(const struct rig_peer *peer, const void *bytes, size_t len);
void rig_host_reads(const struct rig_peer *peer, const void *bytes, size_t len);
void rig_host_reads_nothing(const struct rig_peer *peer);
void rig_host_reads_end(const struct rig_peer *peer);
void rig_close_host(struct rig_peer *peer);
/* Small socket buffers, so that a host program that does not read is soon noticed. */
void rig_narrow(const struct rig_peer *peer);
/* Until the socket takes no more: it can't be written, as if it were not connected yet. */
void rig_fill(int socket);
uint32_t rig_n_chunks(void); /* of the pool, in use */
/* Guest bytes until the socket takes no more and `len` more; returns all of them. */
uint32_t rig_choke(const struct rig_peer *peer, uint32_t stream, uint32_t len);
