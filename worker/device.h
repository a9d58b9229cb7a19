/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The socket device of one guest, in parts over one struct:
 *
 *   device.c      the loop's face: events in, pump, timers
 *   from_guest.c  ring 1: packets of the guest, and what they ask for
 *   to_guest.c    ring 0: control packets, and stream bytes of host programs
 *   host.c        the host-side sockets: writing, the end
 *   host_opening.c  how they come about: handshake, answers, who asked and gave up
 *   seqpacket.c   whole messages, both ways
 *   event.c       ring 2: the transport reset
 *   state.c       a device state, to a pipe or out of one
 *   control.c     messages of the front
 *   control_tell.c those to it
 *   handover*.c   the way into another worker, see handover.h
 *   statistics.c  what the front may ask about
 *
 * Events only note what is possible; device_pump() does what can be done. While
 * the rings are stopped that is nothing but handing host programs what the guest
 * sent before: no guest memory and no call fd is touched, whatever host programs
 * do, and nothing is lost.
 *
 * Single-threaded, no heap. System calls: epoll_ctl, readv, writev, shutdown,
 * close, sendmsg and recvmsg on the channel, those of guest_memory.c and of
 * seqpacket.c.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "ipc/message.h"
#include "ipc/observation.h"
#include "worker/capture.h"
#include "worker/connection.h"
#include "worker/filter.h"
#include "worker/guest_memory.h"
#include "worker/handover.h"
#include "worker/packet.h"
#include "worker/rate.h"
#include "worker/ring.h"
#include "worker/transfer.h"

enum {
	RING_RX,
	RING_TX,
	RING_EVENT,
	RINGS,
};

/* RSTs for packets that belong to no connection; when full, ring 1 waits. */
#define ORPHANS_MAX 256

struct orphan {
	uint64_t src_cid; /* whom the guest talked to */
	uint32_t src_port, dst_port;
	uint16_t type;
};

/* Sockets that no connection has any more, on their way out. */
#define RELEASED_MAX 64

struct released {
	int fd;
	bool is_shut; /* for its other end to see */
};

/* TRANSPORT_RESET, as the front ordered it. */
enum reset {
	RESET_NONE,
	RESET_DUE,
	RESET_SENT, /* until the driver gives the buffer back */
};

/* A device state on its way through a pipe. */
enum state_phase {
	STATE_IDLE,
	STATE_SAVING,
	STATE_LOADING,
	STATE_TELLING, /* the front is told how it ended, and what was read */
};

struct state {
	enum state_phase phase;
	int fd;
	uint8_t *bytes; /* capacity: one more than the longest state */
	size_t capacity, len, n_done;
	struct transfer_header header; /* of a state that was read */
	uint32_t n_told;
	enum state_reason reason;
	bool was_loaded;
};

/* A question of the front, answered when the channel has room for it. */
enum answer_kind {
	ANSWER_NONE,
	ANSWER_COUNTERS,
	ANSWER_CONNECTIONS,
};

struct answer {
	enum answer_kind kind;
	uint32_t query;
	uint32_t next;	      /* counter, or entry of the table, to be told next */
	uint32_t n_told;      /* connections */
	uint32_t n_looked_at; /* entries of the table */
};

struct device {
	int channel; /* to the front */
	int epoll;
	bool is_assigned;
	uint64_t guest_cid;
	uint64_t features;
	uint32_t types;	       /* a bit for each PACKET_TYPE_... that the driver may use */
	uint32_t buffer_size;  /* what is kept of one connection, unless memory is short */
	uint32_t message_size; /* the longest that a host socket takes */
	uint32_t max_handshakes;
	struct rate rate; /* of stream bytes, both ways */
	struct filter filter;
	bool is_quiet;	    /* no OK line for host programs */
	uint16_t n_retries; /* how often a guest is asked again that refuses one */
	uint64_t now_us;    /* monotonic; as of this wake-up */
	uint64_t now;	    /* the same in ms */
	uint64_t guest_now; /* ms; stands still while rings 0 and 1 do not run */
	uint64_t n_looks;   /* every event there was has been noted, so often */
	uint32_t poll_us;   /* it looks on so long before it sleeps; 0: it does not */
	uint64_t poll_end;  /* us */
	uint64_t n_polled;  /* packets, when that was put off last */

	struct guest_memory memory;
	struct dirty_log log;
	struct ring rings[RINGS];
	struct connections connections;
	struct buffer_pool pool;
	bool has_rest; /* some connection's: there is room for one */

	struct orphan orphans[ORPHANS_MAX];
	uint32_t first_orphan, n_orphans;

	struct released released[RELEASED_MAX];
	uint32_t n_released;

	/* Done that the channel had no room for; commands wait as long. */
	bool has_done;
	bool waits_to_write; /* EPOLLOUT is asked for on the channel */
	Vsockd__Done done;

	struct state state;
	int discarded;	     /* a socket of the front-end, closed with the next one or at the end */
	bool is_quarantined; /* requests of the guest wait */
	enum reset reset;
	uint16_t reset_index; /* position of ring 2's driver before it was sent */
	bool was_announced;   /* by the worker before, when ring 2 had used so much: */
	uint32_t announced_used;
	bool waits_to_announce;			    /* for room in the channel */
	bool tells_reset_sent, tells_reset_handled; /* messages that are due */

	struct handover handover;
	struct handover_sockets sockets;
	uint64_t counters[COUNTER_MAX];
	struct answer answer;
	struct capture capture;

	uint64_t n_dropped; /* packets that deserved no answer */
	uint64_t n_refused; /* connections refused for want of a free entry */
};

/* What an epoll event stands for: kind, and for connections entry and generation. */
enum device_event_kind {
	DEVICE_EVENT_CHANNEL,
	DEVICE_EVENT_KICK,
	DEVICE_EVENT_CONNECTION,
	DEVICE_EVENT_STATE,
};

uint64_t device_event(enum device_event_kind kind, uint32_t index, uint32_t generation);

/*
 * A device that waits for Assign. The channel and the epoll fd stay the
 * caller's; connections and pool were set up by it.
 */
bool device_init(struct device *device, int channel, int epoll);

/* It is now so late, in microseconds: first thing after a wake-up. */
void device_set_time(struct device *device, uint64_t now_us);

/* All events that there were at some time since the last call have been noted. */
void device_note_look(struct device *device);

/*
 * Note what an epoll event says. false when the front is gone or breaks rules: the device is
 * detached then.
 */
bool device_note_event(struct device *device, uint64_t event, uint32_t epoll_events);

/* Do what can be done. true when work was left for the next round. */
bool device_pump(struct device *device);

/*
 * The front is gone, or had no use for this worker any more: the guest is left
 * alone from here on. What it sent before is still delivered, until
 * device_is_drained(). A device that was still being taken over is its
 * predecessor's: nothing of it is touched.
 */
void device_detach(struct device *device);
bool device_is_drained(const struct device *device);

/* How long epoll may wait, in ms; -1 without end. */
int device_timeout(const struct device *device);

/* ---- between the parts ---- */

/*
 * device.c: how long the pool has to be: for all buffers, the rest of one message, and
 * what a successor is told.
 */
uint64_t device_pool_len(uint32_t n_connections, uint32_t buffer_size);

/* device.c: so many stream bytes passed, in either direction. */
void device_pass(struct device *device, uint32_t len);

/* device.c: another worker serves the guest, or may be about to. Nothing is touched. */
bool device_is_at_rest(const struct device *device);

/* device.c: a guest that was paused has the time that it had left. */
void device_arm(struct device *device, struct connection *connection, enum connection_timer timer);

/* control.c */
bool control_receive(struct device *device);
void control_detach(struct device *device);

/* control_tell.c */
/* The answer to a command, said at the next control_flush(). */
void control_done(struct device *device, uint32_t sequence, int status, uint32_t value);
/*
 * Behind device_pump(): say what is due to the front, then call the driver for what ring 1
 * gave back. false when the front is gone.
 */
bool control_flush(struct device *device);
int control_send(struct device *device, ProtobufCMessage *body);
/* false: not now, there will be another pump. */
bool control_announce_reset(struct device *device, uint32_t used);
void control_report(struct device *device, enum report_event event, uint64_t first, uint64_t second,
		    uint64_t third);

/* statistics.c */
static inline void statistics_count(struct device *device, enum counter counter, uint64_t n)
{
	device->counters[counter] += n;
}
/* A connection that was asked for is made. */
void statistics_connected(struct device *device, const struct connection *connection);
void statistics_ask(struct device *device, enum answer_kind kind, uint32_t query, uint32_t first);
/* Tell what was asked for, as far as there is room; as channel_send(). */
int statistics_answer(struct device *device);

/* event.c: ring 2 */
void event_run(struct device *device);
bool event_prepare_to_sleep(struct device *device);

/* state.c: the transfer of a device state. Own the fd; 0 or negative errno. */
int state_save(struct device *device, uint32_t flags, int fd);
int state_load(struct device *device, int fd);
void state_event(struct device *device);

/* from_guest.c: at most a budget of packets; true when more wait. */
bool from_guest_run(struct device *device);

/* to_guest.c: as long as there are rx buffers; true when a budget ended it. */
bool to_guest_run(struct device *device);
/* More bytes may pass. */
void to_guest_release(struct device *device);
/* Something may be due to the guest on this connection. */
void to_guest_notice(struct device *device, struct connection *connection);
void to_guest_send(struct device *device, struct connection *connection, uint8_t due);
/* Answer a packet that belongs to no connection; there must be room. */
bool to_guest_has_orphan_room(const struct device *device);
void to_guest_send_orphan_rst(struct device *device, const struct packet_header *header);

/*
 * seqpacket.c: the last parts of a message if it ends with them: flags, PACKET_SEQ_...
 * There is room for one more part behind them.
 */
void seqpacket_write(struct device *device, struct connection *connection, struct iovec *parts,
		     size_t n_parts, size_t len, uint32_t flags);
void seqpacket_flush(struct device *device, struct connection *connection);
/* Bytes of the buffer that are not the guest's. */
uint32_t seqpacket_heads(const struct connection *connection);
/* Can a connection that was handed over be like that? */
bool seqpacket_is_sound(const struct connection *connection);
/* The guest has announced no message that it read for a while. */
void seqpacket_expire(struct device *device, struct connection *connection);
/* The guest wants no more messages, or is gone. */
void seqpacket_drop(struct device *device, struct connection *connection);

/* host.c */
/*
 * Another guest's worker may have shut its reading down: that shows as the event of a
 * socket that can be written, and it was writable. host_flush() finds out.
 */
bool host_may_be_deaf(struct connection *connection, uint32_t events);
/* The host program took so many bytes, or nobody wants them any more. */
void host_took(struct device *device, struct connection *connection, size_t len);
void host_turn_deaf(struct device *device, struct connection *connection);
/* Ask the socket of a stream, unless it is known, whether its other end reads no more. */
void host_check_reader(struct device *device, struct connection *connection);
bool host_watch(struct device *device, const struct connection *connection);
/* The other guest's end was reset. */
void host_peer_reset(struct device *device, const Vsockd__PeerReset *reset);
/* Write stream bytes; what the socket does not take goes into the buffer. */
void host_write(struct device *device, struct connection *connection, struct iovec *parts,
		size_t n_parts, size_t len);
void host_flush(struct device *device, struct connection *connection);
void host_shut_write_when_empty(struct device *device, struct connection *connection);
/* Who writes to the guest is told that nobody reads, what waited to be read is dropped. */
void host_stop_reading(const struct connection *connection);
/* The socket goes; the entry stays until packets and messages are out. */
void host_close(struct device *device, struct connection *connection);
/* Sockets that went are closed: behind each round, before the front is told. */
void host_release(struct device *device);
/* Close, and RST to the guest. */
void host_reset(struct device *device, struct connection *connection);
/* The same after an error of the socket; one that is the kernel's own is reported. */
void host_fail(struct device *device, struct connection *connection, int error);
/* The guest is gone: RST if asked for, write what is buffered, then close. */
void host_drain(struct device *device, struct connection *connection, bool with_rst);
void host_free_when_done(struct device *device, struct connection *connection);
/*
 * The kernel is short of memory, or of places in epoll sets. Bytes may be missing from
 * here on, so the connection ends, for both sides to see.
 */
bool host_is_shortage(int error);

/* host_opening.c */
/* buf_alloc of a connection of that type whose buffer holds so many bytes. */
uint32_t host_window(const struct device *device, uint16_t type, uint32_t buffer_len);
/* Its buffer and its credit. false, and it was told: there is no memory for one more. */
bool host_open_window(struct device *device, struct connection *connection);
void host_accepted(struct device *device, const Vsockd__Accepted *accepted, int fd);
/* Another guest's connection: its ports are known. */
void host_accepted_sibling(struct device *device, const Vsockd__Accepted *accepted, int fd);
/* The guest gave up; the front's answer is still to come, what it brings is closed then. */
void host_abandon(struct device *device, struct connection *connection);
void host_connected(struct device *device, struct connection *connection,
		    const Vsockd__Connected *connected, int fd);
void host_refused(struct device *device, struct connection *connection);
/* The socket was on its way, and does not get there, or not in time. */
void host_connect_failed(struct device *device, struct connection *connection, bool is_late);
void host_read_handshake(struct device *device, struct connection *connection);
/* The guest accepted: tell the host program, or the front. */
void host_answer(struct device *device, struct connection *connection);
void host_handshake_failed(struct device *device, struct connection *connection,
			   enum report_handshake_reason reason);
void host_leave_handshake(struct device *device, struct connection *connection);
