/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The CONNECT line of a host program, in every length it may arrive in. The answer to
 * each is compared with what the words in handshake.h say, written down in another way.
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "tests/fuzz/fuzz.h"
#include "worker/handshake.h"

struct answer {
	int result;
	uint32_t port;
	size_t len;
};

/* The port of a text of digits; false when there are none, or too many. */
static bool read_port(const char *digits, size_t n_digits, uint32_t *ret_port)
{
	uint64_t port = 0;

	if (n_digits == 0 || strspn(digits, "0123456789") < n_digits)
		return false;
	for (size_t i = 0; i < n_digits; i++) {
		port = 10 * port + (uint64_t)(digits[i] - '0');
		if (port > UINT32_MAX)
			return false;
	}
	*ret_port = (uint32_t)port;
	return true;
}

/* What is behind the keyword: digits, and nothing else but one CR before the end. */
static struct answer answer_rest(const char *line, size_t len, bool has_end)
{
	const char *digits = line + strlen("CONNECT ");
	size_t n_digits = strspn(digits, "0123456789");
	size_t used = strlen("CONNECT ") + n_digits;
	struct answer answer = {.result = HANDSHAKE_E_MALFORMED};
	bool has_port = read_port(digits, n_digits, &answer.port);

	if (n_digits > 0 && !has_port)
		return answer;
	if (has_port && used < len && line[used] == '\r' && used + 1 < HANDSHAKE_LINE_MAX)
		used++;
	if (used < len)
		return answer;
	if (!has_end) {
		answer.result = HANDSHAKE_E_INCOMPLETE;
	} else if (has_port) {
		answer.result = 0;
		answer.len = len + 1;
	}
	return answer;
}

static struct answer expected(const uint8_t *bytes, size_t len)
{
	size_t shown = len < HANDSHAKE_LINE_MAX ? len : HANDSHAKE_LINE_MAX;
	const uint8_t *end = shown ? memchr(bytes, '\n', shown) : NULL;
	char line[HANDSHAKE_LINE_MAX + 1] = {0};
	size_t line_len = end ? (size_t)(end - bytes) : shown;
	size_t keyword_len = line_len < strlen("CONNECT ") ? line_len : strlen("CONNECT ");
	struct answer answer = {.result = HANDSHAKE_E_MALFORMED};

	if (line_len > 0)
		memcpy(line, bytes, line_len);
	/* A zero would end the text where the line does not. */
	for (size_t i = 0; i < line_len; i++)
		if (line[i] == '\0')
			line[i] = '?';
	if (strncasecmp(line, "CONNECT ", keyword_len) != 0)
		return answer;
	if (line_len < strlen("CONNECT "))
		answer.result = end ? HANDSHAKE_E_MALFORMED : HANDSHAKE_E_INCOMPLETE;
	else
		answer = answer_rest(line, line_len, end != NULL);
	if (answer.result == HANDSHAKE_E_INCOMPLETE && len >= HANDSHAKE_LINE_MAX)
		answer.result = HANDSHAKE_E_MALFORMED;
	return answer;
}

static void check_line(const uint8_t *bytes, size_t len)
{
	struct answer right = expected(bytes, len);
	uint32_t port = 0x5a5a5a5a;
	size_t line_len = 77;

	CLAIM(handshake_parse(bytes, len, &port, &line_len) == right.result);
	CLAIM(port == (right.result == 0 ? right.port : 0x5a5a5a5a));
	CLAIM(line_len == (right.result == 0 ? right.len : 77));
}

static void check_answer(uint32_t port)
{
	char line[HANDSHAKE_ANSWER_MAX], right[32];
	int len = snprintf(right, sizeof(right), "OK %" PRIu32 "\n", port);

	CLAIM(handshake_answer(port, line) == (size_t)len);
	CLAIM(memcmp(line, right, (size_t)len) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	uint32_t port = 0;

	if (len > 2 * HANDSHAKE_LINE_MAX)
		return -1;
	for (size_t n = 0; n <= len; n++)
		check_line(bytes, n);
	if (len > 0)
		memcpy(&port, bytes, len < sizeof(port) ? len : sizeof(port));
	check_answer(port);
	return 0;
}
