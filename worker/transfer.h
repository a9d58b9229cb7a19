/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The device state, as it travels from one vsockd to another through a pipe of
 * the front-end's (QEMU's vhost-user document, "Migrating back-end state"):
 * little-endian, versioned, checksummed, bounded. It says what a successor
 * cannot know: whether a driver lived, who owned ring 2, and which connections
 * there were. Read and checked here, in the confined process; nothing in it is
 * believed beyond its form. Pure functions on bytes.
 */

#include <stddef.h>
#include <stdint.h>

#include "ipc/message.h"

#define TRANSFER_VERSION	1
#define TRANSFER_HEADER_LEN	40
#define TRANSFER_CONNECTION_LEN 16
#define TRANSFER_CHECKSUM_LEN	4

struct transfer_header {
	uint64_t guest_cid;
	uint64_t features;
	uint32_t flags; /* STATE_FLAG_... */
	uint32_t n_connections;
};

struct transfer_connection {
	uint32_t guest_port, host_port;
	uint32_t type;
	uint32_t peer_cid; /* whose host_port is */
};

/* Bytes of a state with so many connections. */
size_t transfer_len(uint32_t n_connections);

/* Write header and one connection into their places; then the checksum over all. */
void transfer_put_header(uint8_t *bytes, const struct transfer_header *header);
void transfer_put_connection(uint8_t *bytes, uint32_t index,
			     const struct transfer_connection *connection);
void transfer_put_checksum(uint8_t *bytes, uint32_t n_connections);

/*
 * Check a whole state. STATE_GOOD, with the header, or the reason why not. No
 * bytes at all are a state too: nothing is known (STATE_FLAG_UNKNOWN).
 */
enum state_reason transfer_check(const uint8_t *bytes, size_t len,
				 struct transfer_header *ret_header);

void transfer_get_connection(const uint8_t *bytes, uint32_t index,
			     struct transfer_connection *ret_connection);
