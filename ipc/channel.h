/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A channel carries whole packets, each with at most CHANNEL_FDS_MAX fds,
 * between the front and one worker, over a SOCK_SEQPACKET socket. The other end
 * is assumed to be compromised: what is too long, was cut off by the kernel or
 * carries too many fds is CHANNEL_E_BROKEN, and the caller drops the peer.
 *
 * Stateless: the socket is the caller's. System calls: sendmsg and recvmsg.
 */

#include <stddef.h>
#include <stdint.h>

/* The longest message, HandoverConnections, fills it but for a few bytes. */
#define CHANNEL_MESSAGE_MAX 256
#define CHANNEL_FDS_MAX	    1

enum {
	CHANNEL_E_AGAIN = 1, /* nothing there, no room, or no memory; wait with epoll */
	CHANNEL_E_CLOSED = 2,
	CHANNEL_E_BROKEN = 3,
};

struct channel_packet {
	uint8_t bytes[CHANNEL_MESSAGE_MAX];
	size_t len;
	int fd; /* -1: none */
};

/*
 * Send one packet; the fd, if any, stays the caller's. 0, CHANNEL_E_AGAIN,
 * CHANNEL_E_CLOSED, or negative errno.
 */
int channel_send(int socket, const struct channel_packet *packet);

/*
 * Receive one packet; on 0 its fd is the caller's, close-on-exec. On anything
 * else no fd was kept. 0, CHANNEL_E_..., or negative errno.
 */
int channel_receive(int socket, struct channel_packet *ret_packet);

/*
 * Wait until there is a packet, or the end; for a socket that is not set to O_NONBLOCK.
 * Anything else may end the wait as well. System call: recvmsg.
 */
void channel_wait(int socket);
