/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A guest without a machine: the virtio-vsock driver and a small socket layer
 * above it, modelled after Linux's, that work through the vhost-user socket of
 * a back-end. Everything happens in the calling thread and only inside these
 * calls; guest_poll() is the one that waits.
 *
 * What a back-end must never do (send beyond our credit, for a connection that
 * does not exist, after it said that it would not, with a used length that does
 * not fit its header, ...) is written down as a violation while the guest goes
 * on as Linux would. A test ends with
 *	assert_string_equal(guest_violations(guest), "");
 *
 * int results: 0 or a count, else negative errno. -ECONNRESET of the calls on
 * the whole guest means that the back-end closed the vhost-user socket; -EPROTO
 * that it broke a ring or the protocol (guest_violations() and vhost_error()),
 * -EREMOTEIO that it refused a message.
 *
 * With FRONTEND_TRACE in the environment each packet goes to stderr as a line.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "tests/frontend/memory.h"
#include "tests/frontend/packet.h"
#include "tests/frontend/ring.h"
#include "tests/frontend/socket.h"
#include "tests/frontend/vhost.h"

enum { GUEST_RX, GUEST_TX, GUEST_EVENT, GUEST_RINGS };

/* Whose order of messages, acknowledged bits and need_reply is followed. */
enum guest_style {
	GUEST_LIKE_QEMU,	     /* two rings, ADD_MEM_REG, masked call fds first */
	GUEST_LIKE_CROSVM,	     /* three rings, no need_reply, config read in halves */
	GUEST_LIKE_CLOUD_HYPERVISOR, /* three rings, need_reply always, base = avail index */
};

/* How a ring is kicked, and the driver called. */
enum guest_signals {
	GUEST_SIGNALS_FD,
	GUEST_SIGNALS_POLLED,  /* no kick fd; the driver is called all the same */
	GUEST_SIGNALS_IN_BAND, /* VRING_KICK, VRING_CALL and VRING_ERR */
};

/*
 * How a packet lies in descriptors: a new one begins at each of cuts[] (ascending
 * offsets in the packet, whose header is 44 bytes), and, with piece_len, after
 * each piece_len bytes behind the last cut. Pieces are not adjacent in memory.
 */
#define GUEST_CUTS_MAX	 8
#define GUEST_PIECES_MAX 512

struct guest_layout {
	uint32_t cuts[GUEST_CUTS_MAX];
	size_t n_cuts;
	uint32_t piece_len;
	bool is_indirect; /* used only if INDIRECT was negotiated */
};

/* Zero is the default of each member. */
struct guest_options {
	const char *socket;
	enum guest_style style;
	uint64_t cid; /* expected in the configuration space; 0: any */
	/*
	 * Acknowledged if offered; 0: VERSION_1, INDIRECT, EVENT_IDX and SEQPACKET. What
	 * $FRONTEND_RINGS has the names of is added or, behind a minus, left out: packed, in-order,
	 * notification-data, -indirect, -event-idx. So any test runs over any rings.
	 */
	uint64_t features;
	uint64_t protocol_features; /* the same; 0: what the style's VMM knows */
	bool omits_protocol_bit;    /* SET_FEATURES without bit 30, as QEMU before 7.2 */
	bool is_prefilled;	    /* post rx and event buffers before the rings start */
	bool injects_kicks;	    /* kick each ring behind SET_VRING_KICK, as QEMU since 11.1 */
	enum guest_signals signals;
	bool starts_tx_late; /* in band: ring 1 starts with its first packet, as in Linux on UML */
	bool has_guest_addresses; /* as with GPA_ADDRESSES */
	bool holds_events;	  /* answer events only at guest_answer_events() */
	uint16_t queue_size;	  /* 0: 128 */
	uint32_t rx_buffer_size;  /* 0: 4096, header included */
	uint32_t n_rx_buffers;	  /* 0: as many as fit the ring */
	uint32_t n_tx_buffers;	  /* 0: 64; packets in flight */
	uint32_t buf_alloc;	  /* 0: 256 KiB */
	struct guest_layout rx_layout, tx_layout;
	const struct memory_layout *regions; /* n_regions 0: 64 MiB at 1 MiB */
	size_t n_regions;
	bool is_straddling; /* an rx buffer, and a tx buffer, lie across borders of adjacent regions
			     */
	int timeout;	    /* milliseconds; 0: SOCKET_TIMEOUT */
};

/* From the guest's point of view: [GUEST_RX] came in, [GUEST_TX] went out. */
struct guest_statistics {
	uint64_t n_packets, n_bytes;
	uint64_t n_kicks, n_calls;
};

enum guest_state {
	GUEST_CONNECTING,  /* REQUEST sent */
	GUEST_ESTABLISHED, /* including half-closed: see shutdown and peer_shutdown */
	GUEST_CLOSING,	   /* SHUTDOWN of both directions sent, RST awaited */
	GUEST_CLOSED,
};

struct guest;

/* Added to the length of a message that ends a record. */
#define GUEST_RECORD (UINT32_C(1) << 31)

/*
 * One connection. Belongs to the guest, is valid until guest_forget(),
 * guest_finish() or guest_end(). Tests read the members and write only those
 * marked so.
 */
struct guest_connection {
	struct guest *guest;
	uint64_t peer_cid;
	uint32_t port, peer_port;
	uint16_t type; /* PACKET_STREAM, PACKET_SEQPACKET */
	enum guest_state state;
	int error; /* ECONNRESET: ended by the other side without an orderly shutdown */
	uint32_t shutdown, peer_shutdown; /* PACKET_SHUTDOWN_...: said by us, by the peer */

	uint32_t tx_cnt, peer_buf_alloc, peer_fwd_cnt;
	uint32_t rx_cnt, fwd_cnt, last_fwd_cnt; /* last: as announced */
	uint32_t buf_alloc;			/* writable: announced with the next packet */
	uint32_t largest_buf_alloc;		/* ever announced: what a violation is judged by */
	uint64_t n_received, n_sent;		/* payload bytes */
	bool has_ended_record; /* the message that guest_receive_message() gave last: MSG_EOR */

	uint32_t packet_size;	    /* writable: payload of a packet, up to 64 KiB */
	struct guest_layout layout; /* writable: of the packets that guest_send() makes */

	/*
	 * Writable: if set, payload is handed over where it lies and counts as
	 * read at once. Otherwise it is kept for guest_receive().
	 */
	void (*sink)(void *context, const uint8_t *bytes, size_t len);
	void *sink_context;

	/* private */
	uint8_t *buffer;
	size_t buffer_size, n_buffered, read_at;
	uint32_t *message_lens; /* of whole messages that wait, oldest first; GUEST_RECORD */
	size_t n_messages, messages_size;
	uint32_t open_len;
	bool is_excused; /* ended by us: packets on their way are no violation */
	bool is_incoming;
	struct guest_connection *next, *next_incoming;
};

#define GUEST_BUCKETS	    1024
#define GUEST_LISTENERS_MAX 64
#define GUEST_EVENT_BUFFERS 8 /* as Linux */
#define GUEST_EXCUSED_MAX   64

struct guest_name {
	uint64_t peer_cid;
	uint32_t port, peer_port;
};

struct guest {
	struct guest_options options; /* with the defaults filled in */
	struct vhost vhost;
	struct memory memory;
	struct ring rings[GUEST_RINGS];
	size_t n_rings;
	bool is_started, is_starting, is_disconnected;
	uint64_t cid;
	uint32_t base[GUEST_RINGS]; /* as the back-end returned it */
	int backend_fd;		    /* our end of SET_BACKEND_REQ_FD, -1: none */
	bool is_backend_closed;
	uint64_t n_transport_resets, n_ring_errors;
	struct guest_statistics statistics[2];

	/*
	 * Writable: sees each packet before the socket layer, which does not get
	 * it if this returns true.
	 */
	bool (*on_packet)(void *context, const struct packet *packet, const struct iovec *payload,
			  size_t n_payload);
	void *on_packet_context;

	/* private */
	uint64_t rx_address, tx_address, event_address;
	uint32_t rx_pieces[GUEST_PIECES_MAX], n_rx_pieces;
	uint32_t rx_stride, rx_table_len;
	uint32_t *free_slots;
	uint32_t n_free_slots;
	uint32_t held_events[GUEST_EVENT_BUFFERS];
	size_t n_held_events;
	int masked_call[GUEST_RINGS];
	uint16_t stopped_idx[GUEST_RINGS]; /* used index when the ring was stopped */
	bool is_filled, is_memory_told, has_base, is_traced;
	struct packet *pending; /* control packets that found no room, oldest first */
	size_t n_pending, pending_size;
	struct guest_connection *buckets[GUEST_BUCKETS];
	struct guest_connection *incoming;	      /* not yet accepted, oldest first */
	struct guest_name excused[GUEST_EXCUSED_MAX]; /* forgotten, packets may be on their way */
	size_t n_excused;
	uint32_t listeners[GUEST_LISTENERS_MAX];
	uint16_t listener_types[GUEST_LISTENERS_MAX];
	size_t n_listeners;
	uint32_t next_port;
	struct watch *watches;
	char violations[2048];
	size_t n_violations;
};

/*
 * The life of a guest. start = memory, rings, negotiation and guest_resume().
 * If it fails, the guest is ended already and *guest keeps its texts only.
 */
int guest_start(struct guest *guest, const struct guest_options *options);
/* Memory and rings alone: the messages are the caller's, see sequence.h. */
int guest_create(struct guest *guest, const struct guest_options *options);
void guest_end(struct guest *guest);

/* As a paused VM: every ring disabled and stopped; connections stay. And on again. */
int guest_stop(struct guest *guest);
int guest_resume(struct guest *guest);

/* SET_VRING_ENABLE for all rings, done on return: cloud-hypervisor's pause and resume. */
int guest_enable(struct guest *guest, bool is_enabled);

/* As a guest that reboots: stopped, connections gone, rings empty. guest_resume() starts it. */
int guest_reset(struct guest *guest);

/*
 * As a VM that moves: close the vhost-user socket, keep memory and rings; and
 * negotiate with a back-end at `socket`, loading `state` (NULL: none) before
 * any memory is told. guest_resume() follows.
 */
void guest_detach(struct guest *guest);
int guest_attach(struct guest *guest, const char *socket, const void *state, size_t len);

/*
 * Handle what waits in the rings, without a system call unless a kick is due.
 * Returns how many chains were handled.
 */
int guest_process(struct guest *guest);

/*
 * Handle what waits; if nothing did, wait up to timeout milliseconds for a
 * call or a watched fd and handle that. 0: nothing happened.
 */
int guest_poll(struct guest *guest, int timeout);

/* Take what the back-end said through the socket of SET_BACKEND_REQ_FD; waits for nothing. */
void guest_in_band_drain(struct guest *guest);

/* Poll until the predicate holds. 0, -ETIMEDOUT, or what guest_poll() failed with. */
int guest_wait_until(struct guest *guest, bool (*predicate)(void *context), void *context,
		     int timeout);

/* Poll for all of that time: for what must not happen. 0 or negative errno. */
int guest_poll_for(struct guest *guest, int milliseconds);

/*
 * Watch an fd as well. The struct is the caller's and stays until
 * guest_unwatch(); from within ready() a watch may unwatch itself only.
 */
void guest_watch(struct guest *guest, struct watch *watch);
void guest_unwatch(struct guest *guest, struct watch *watch);

/* "" or a line for each. */
const char *guest_violations(const struct guest *guest);

/* Read guest_cid with GET_CONFIG as the style does, into guest->cid. */
int guest_read_cid(struct guest *guest);

/* With holds_events: reset connections, read the CID, put the event buffers back. */
int guest_answer_events(struct guest *guest);

/* Counters with those of the rings added in. direction: GUEST_RX or GUEST_TX. */
struct guest_statistics guest_statistics(const struct guest *guest, int direction);

/*
 * Any header, any payload (NULL: whatever lies in the buffer), as one chain;
 * kicks. -EAGAIN if there is no room now. guest_send_bytes() sends no header
 * but the bytes alone.
 */
int guest_send_packet(struct guest *guest, const struct packet *packet, const void *payload,
		      size_t len, const struct guest_layout *layout);
int guest_send_bytes(struct guest *guest, const void *bytes, size_t len,
		     const struct guest_layout *layout);

/* A header of this connection with its credit, to be bent and sent. */
struct packet guest_packet(const struct guest_connection *connection, enum packet_op op);

/* Send REQUEST. The connection, CONNECTING; NULL without memory. */
struct guest_connection *guest_connect(struct guest *guest, uint64_t cid, uint32_t port);

/* Answer REQUESTs to that port with RESPONSE from now on; others get RST. */
int guest_listen(struct guest *guest, uint32_t port);
void guest_unlisten(struct guest *guest, uint32_t port);

/*
 * The same for SOCK_SEQPACKET. As in Linux a port has sockets of one type, and
 * another type gets RST.
 */
struct guest_connection *guest_connect_messages(struct guest *guest, uint64_t cid, uint32_t port);
int guest_listen_messages(struct guest *guest, uint32_t port);

/* The oldest connection to that port not yet accepted, or NULL. */
struct guest_connection *guest_accept(struct guest *guest, uint32_t port);

/*
 * As many bytes as credit and buffers admit (bytes NULL: whatever lies in the
 * packet buffers, nothing is copied). Their number, -EAGAIN if none now, -EPIPE
 * after shutdown, -ECONNRESET.
 */
ssize_t guest_send(struct guest_connection *connection, const void *bytes, size_t len);

/* Bytes received, up to len. Their number, 0 at the end, -EAGAIN, -ECONNRESET. */
ssize_t guest_receive(struct guest_connection *connection, void *bytes, size_t len);

/*
 * A message, waiting for credit; flags: 0 or PACKET_EOR. 0, -EMSGSIZE when it is longer
 * than the peer's buffer, -ETIMEDOUT, or as guest_send().
 */
int guest_send_message(struct guest_connection *connection, const void *bytes, size_t len,
		       uint32_t flags, int timeout);

/*
 * The oldest message. Its length, though no more than size bytes of it are kept;
 * -EAGAIN, -ENODATA at the end, -ECONNRESET.
 */
ssize_t guest_receive_message(struct guest_connection *connection, void *bytes, size_t size);
ssize_t guest_receive_message_wait(struct guest_connection *connection, void *bytes, size_t size,
				   int timeout);

/* Send SHUTDOWN with these flags (PACKET_SHUTDOWN_...). */
int guest_shutdown(struct guest_connection *connection, uint32_t flags);

/* As close(2) in Linux: SHUTDOWN of both, or RST if the peer said that already. */
int guest_close(struct guest_connection *connection);

/* RST at once. */
int guest_abort(struct guest_connection *connection);

/*
 * Free it. What still arrives for it is a violation, as for any unknown connection,
 * unless it was ended from our side and packets may have been on their way.
 */
void guest_forget(struct guest_connection *connection);

/* The same, waiting; timeout in milliseconds, for all of it. */
int guest_wait_state(struct guest_connection *connection, enum guest_state state, int timeout);
struct guest_connection *guest_connect_wait(struct guest *guest, uint64_t cid, uint32_t port,
					    int timeout); /* NULL: not established */
struct guest_connection *guest_accept_wait(struct guest *guest, uint32_t port, int timeout);
int guest_send_all(struct guest_connection *connection, const void *bytes, size_t len, int timeout);
/* Up to len bytes, fewer only at the end. Their number. */
ssize_t guest_receive_all(struct guest_connection *connection, void *bytes, size_t len,
			  int timeout);
/* Close, wait for the end, forget. */
int guest_finish(struct guest_connection *connection, int timeout);
