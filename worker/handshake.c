/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/handshake.h"

#include <stdbool.h>

static const char keyword[] = "connect ";
#define KEYWORD_LEN (sizeof(keyword) - 1)

static bool matches_keyword(uint8_t byte, size_t at)
{
	if (byte >= 'A' && byte <= 'Z')
		byte = (uint8_t)(byte - 'A' + 'a');
	return byte == (uint8_t)keyword[at];
}

int handshake_parse(const uint8_t *bytes, size_t len, uint32_t *ret_port, size_t *ret_len)
{
	uint64_t port = 0;
	bool has_digit = false;

	for (size_t i = 0; i < len && i < HANDSHAKE_LINE_MAX; i++) {
		uint8_t byte = bytes[i];

		if (i < KEYWORD_LEN) {
			if (!matches_keyword(byte, i))
				return HANDSHAKE_E_MALFORMED;
		} else if (byte >= '0' && byte <= '9') {
			port = port * 10 + (uint64_t)(byte - '0');
			if (port > UINT32_MAX)
				return HANDSHAKE_E_MALFORMED;
			has_digit = true;
		} else if (byte == '\r' && has_digit && i + 1 < HANDSHAKE_LINE_MAX) {
			/* Typed by hand through a terminal program: only before the newline. */
			if (i + 1 < len && bytes[i + 1] != '\n')
				return HANDSHAKE_E_MALFORMED;
		} else if (byte == '\n' && has_digit) {
			*ret_port = (uint32_t)port;
			*ret_len = i + 1;
			return 0;
		} else {
			return HANDSHAKE_E_MALFORMED;
		}
	}
	return len < HANDSHAKE_LINE_MAX ? HANDSHAKE_E_INCOMPLETE : HANDSHAKE_E_MALFORMED;
}

size_t handshake_answer(uint32_t port, char line[static HANDSHAKE_ANSWER_MAX])
{
	char digits[10];
	size_t n_digits = 0, len = 0;

	do {
		digits[n_digits++] = (char)('0' + port % 10);
		port /= 10;
	} while (port > 0);

	line[len++] = 'O';
	line[len++] = 'K';
	line[len++] = ' ';
	while (n_digits > 0)
		line[len++] = digits[--n_digits];
	line[len++] = '\n';
	return len;
}
