/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Between the parts of the guest: guest.c (its life and the vhost-user messages),
 * guest_packets.c (what goes through the rings), guest_connections.c (the socket
 * layer) and guest_messages.c (SOCK_SEQPACKET). Not for tests.
 */

#include "tests/frontend/guest.h"

/* guest.c: messages, 0, VHOST_E_NACK or negative errno */
int guest_dial(struct guest *guest, const char *socket); /* connect, and nothing said */
int guest_set_backend_fd(struct guest *guest);
int guest_set_features(struct guest *guest, bool is_forced);
int guest_tell_memory(struct guest *guest);
int guest_stop_ring(struct guest *guest, uint32_t index);
void guest_forget_driver(struct guest *guest); /* as one that starts anew; no message */

/* guest_packets.c */
int guest_packets_init(struct guest *guest);   /* places buffers; rings and options are set */
void guest_packets_reset(struct guest *guest); /* rings were emptied: all buffers are ours again */
void guest_packets_fill(struct guest *guest);  /* posts rx and event buffers that are not yet */
void guest_packets_end(struct guest *guest);
int guest_packets_put(struct guest *guest, const struct packet *packet, const void *payload,
		      size_t len, const struct guest_layout *layout); /* without ring_submit() */
void guest_violate(struct guest *guest, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* guest_connections.c */
void guest_connections_take(struct guest *guest, const struct packet *packet,
			    const struct iovec *payload, size_t n_payload);
size_t guest_connections_flush(struct guest *guest);	     /* pending control packets */
void guest_connections_drop(struct guest *guest);	     /* all CLOSED with ECONNRESET */
void guest_connections_excuse_requests(struct guest *guest); /* a late answer is no violation */
void guest_connections_end(struct guest *guest);
void guest_say(struct guest_connection *connection, enum packet_op op, uint32_t flags);
uint32_t guest_credit(const struct guest_connection *connection);
int guest_check_sendable(const struct guest_connection *connection);
/* A packet of this connection, which tells of our buffer, was put. */
void guest_note_announced(struct guest_connection *connection);

/* guest_messages.c: the payload of a packet was kept, and what its flags say */
void guest_messages_note(struct guest_connection *connection, const struct packet *packet);

/* guest_in_band.c */
void guest_in_band_init(struct guest *guest);
