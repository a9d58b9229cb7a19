/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The line with which a host program asks for a guest port: "CONNECT <port>\n",
 * the keyword in any case, the port a decimal number of 32 bits. It may come in
 * any pieces, and the first bytes of the stream may follow in the same piece.
 * Pure functions.
 */

#include <stddef.h>
#include <stdint.h>

/* "CONNECT 4294967295\n" has 19 bytes; leading zeros and a CR get some room. */
#define HANDSHAKE_LINE_MAX 32

enum {
	HANDSHAKE_E_INCOMPLETE = 1, /* so far so good */
	HANDSHAKE_E_MALFORMED = 2,
};

/*
 * Look at what has come so far. On 0 *ret_port is the port and *ret_len the
 * length of the line with its newline: what lies behind belongs to the stream.
 */
int handshake_parse(const uint8_t *bytes, size_t len, uint32_t *ret_port, size_t *ret_len);

/* "OK <port>\n" into line; its length is returned. */
#define HANDSHAKE_ANSWER_MAX 16
size_t handshake_answer(uint32_t port, char line[static HANDSHAKE_ANSWER_MAX]);
