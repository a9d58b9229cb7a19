/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/handshake.h"

#define UNTOUCHED 0x5a5a5a5a

/* In memory that ends where the bytes do: reading on is noticed. */
static int parse(const char *text, size_t len, uint32_t *ret_port, size_t *ret_len)
{
	uint8_t *bytes = malloc(len ? len : 1);
	int r;

	assert_non_null(bytes);
	memcpy(bytes, text, len);
	*ret_port = UNTOUCHED;
	*ret_len = UNTOUCHED;
	r = handshake_parse(bytes, len, ret_port, ret_len);
	free(bytes);
	if (r != 0) {
		assert_int_equal(*ret_port, UNTOUCHED);
		assert_int_equal(*ret_len, UNTOUCHED);
	}
	return r;
}

static const struct {
	const char *line;
	uint32_t port;
} good[] = {
	{"CONNECT 0\n", 0},
	{"CONNECT 1024\n", 1024},
	{"connect 80\n", 80},
	{"CoNnEcT 4294967295\n", UINT32_MAX},
	{"CONNECT 52\r\n", 52},
	{"CONNECT 007\n", 7},
	{"CONNECT 00000000000004294967295\n", UINT32_MAX}, /* 32 bytes */
	{"CONNECT 0000000000000000000052\r\n", 52},	   /* 32 bytes */
};
#define N_GOOD (sizeof(good) / sizeof(good[0]))

static void test_a_line_names_a_port(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_GOOD; i++) {
		uint32_t port;
		size_t len;

		assert_int_equal(parse(good[i].line, strlen(good[i].line), &port, &len), 0);
		assert_int_equal(port, good[i].port);
		assert_int_equal(len, strlen(good[i].line));
	}
}

static void test_every_beginning_of_a_line_is_incomplete(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_GOOD; i++)
		for (size_t n = 0; n < strlen(good[i].line); n++) {
			uint32_t port;
			size_t len;

			assert_int_equal(parse(good[i].line, n, &port, &len),
					 HANDSHAKE_E_INCOMPLETE);
		}
}

static void test_what_follows_the_newline_is_not_looked_at(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_GOOD; i++) {
		char text[64];
		uint32_t port;
		size_t len;

		snprintf(text, sizeof(text), "%sGET /\n\n", good[i].line);
		assert_int_equal(parse(text, strlen(text), &port, &len), 0);
		assert_int_equal(port, good[i].port);
		assert_int_equal(len, strlen(good[i].line));
	}
}

static void test_anything_else_is_malformed(void **state)
{
	static const char *const bad[] = {
		"\n",
		" CONNECT 1\n",
		"CONNECT\n",
		"CONNECT \n",
		"CONNECT  1\n",
		"CONNECT\t1\n",
		"CONNECT \r\n",
		"CONNECT 1 \n",
		"CONNECT 1\r\r\n",
		"CONNECT 1\rx",
		"CONNECT 1\r1\n",
		"CONNECT +1\n",
		"CONNECT -1\n",
		"CONNECT 0x10\n",
		"CONNECT 1a\n",
		"CONNECT 1.5\n",
		"CONNECT 4294967296\n",
		"CONNECT 18446744073709551616\n", /* 2^64 */
		"CONNECT 18446744073709551617\n",
		"CONNECT 99999999999999999999999\n",
		"CONNEXT 1\n",
		"CONNECTED 1\n",
		"DISCONNECT 1\n",
		"GET / HTTP/1.1\r\n",
		"\x16\x03\x01\x02",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		uint32_t port;
		size_t len;

		assert_int_equal(parse(bad[i], strlen(bad[i]), &port, &len), HANDSHAKE_E_MALFORMED);
	}
}

static void test_any_wrong_byte_at_any_place_is_malformed_at_once(void **state)
{
	static const char line[] = "CONNECT 5\n";

	(void)state;
	for (size_t at = 0; at < sizeof(line) - 1; at++)
		for (int byte = 0; byte < 256; byte++) {
			char text[sizeof(line)];
			uint32_t port;
			size_t len;
			int r;

			memcpy(text, line, sizeof(line));
			text[at] = (char)byte;
			r = parse(text, at + 1, &port, &len);
			if (at < 8 && (byte | 0x20) == (line[at] | 0x20) &&
			    (byte >= 'A' || byte == ' '))
				assert_int_equal(r, HANDSHAKE_E_INCOMPLETE);
			else if (at >= 8 && byte >= '0' && byte <= '9')
				assert_int_equal(r, HANDSHAKE_E_INCOMPLETE);
			else if (at == 9 && byte == '\r')
				assert_int_equal(r, HANDSHAKE_E_INCOMPLETE);
			else if (at == 9 && byte == '\n')
				assert_int_equal(r, 0);
			else
				assert_int_equal(r, HANDSHAKE_E_MALFORMED);
		}
}

static void test_a_line_of_more_than_32_bytes_is_malformed_when_they_are_there(void **state)
{
	static const char long_line[] = "CONNECT 0000000000000000000000001\n";
	static const char long_cr[] = "CONNECT 00000000000000000000001\r\n";
	uint32_t port;
	size_t len;

	(void)state;
	for (size_t n = 0; n < HANDSHAKE_LINE_MAX; n++)
		assert_int_equal(parse(long_line, n, &port, &len), HANDSHAKE_E_INCOMPLETE);
	for (size_t n = HANDSHAKE_LINE_MAX; n < sizeof(long_line); n++)
		assert_int_equal(parse(long_line, n, &port, &len), HANDSHAKE_E_MALFORMED);
	assert_int_equal(parse(long_cr, HANDSHAKE_LINE_MAX, &port, &len), HANDSHAKE_E_MALFORMED);
	assert_int_equal(parse(long_cr, HANDSHAKE_LINE_MAX + 1, &port, &len),
			 HANDSHAKE_E_MALFORMED);
}

static void test_an_answer_is_ok_and_the_port(void **state)
{
	static const uint32_t ports[] = {0, 9, 10, 1024, 1073741824, 999999999, UINT32_MAX};

	(void)state;
	for (size_t i = 0; i < sizeof(ports) / sizeof(ports[0]); i++) {
		char line[HANDSHAKE_ANSWER_MAX], expected[HANDSHAKE_ANSWER_MAX + 1];
		int len = snprintf(expected, sizeof(expected), "OK %u\n", ports[i]);

		assert_int_equal(handshake_answer(ports[i], line), len);
		assert_memory_equal(line, expected, (size_t)len);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_line_names_a_port),
		cmocka_unit_test(test_every_beginning_of_a_line_is_incomplete),
		cmocka_unit_test(test_what_follows_the_newline_is_not_looked_at),
		cmocka_unit_test(test_anything_else_is_malformed),
		cmocka_unit_test(test_any_wrong_byte_at_any_place_is_malformed_at_once),
		cmocka_unit_test(
			test_a_line_of_more_than_32_bytes_is_malformed_when_they_are_there),
		cmocka_unit_test(test_an_answer_is_ok_and_the_port),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
