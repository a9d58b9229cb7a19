/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/transfer.h"

#define N   5
#define LEN (40 + 16 * N + 4)

static const struct transfer_header source = {
	.guest_cid = UINT64_C(0x1122334455667788),
	.features = UINT64_C(0x0000000174000000),
	.flags = STATE_FLAG_DRIVER | STATE_FLAG_EVENT_RING,
	.n_connections = N,
};

/* Each in a block of its own: a byte too far is seen by valgrind and sanitizers. */
static uint8_t *compose(void)
{
	uint8_t *bytes = malloc(LEN);

	assert_non_null(bytes);
	for (uint32_t i = 0; i < N; i++) {
		struct transfer_connection connection = {0xffff0000 + i, i, i % 2 + 1, 2 + i};

		transfer_put_connection(bytes, i, &connection);
	}
	transfer_put_header(bytes, &source);
	transfer_put_checksum(bytes, N);
	return bytes;
}

/* The reason, with nothing written when there is one. */
static enum state_reason check(const uint8_t *bytes, size_t len)
{
	struct transfer_header header = {.guest_cid = 1, .flags = 2, .n_connections = 3};
	enum state_reason reason;
	uint8_t *copy = malloc(len + (len == 0));

	assert_non_null(copy);
	memcpy(copy, bytes, len);
	reason = transfer_check(copy, len, &header);
	free(copy);
	return reason;
}

static void put32(uint8_t *place, uint32_t value)
{
	memcpy(place, &value, sizeof(value));
}

static void test_what_is_written_is_read(void **state)
{
	struct transfer_connection connection;
	struct transfer_header header;
	uint8_t *bytes = compose();

	(void)state;
	assert_int_equal(transfer_len(N), LEN);
	assert_int_equal(transfer_check(bytes, LEN, &header), STATE_GOOD);
	assert_int_equal(header.guest_cid, source.guest_cid);
	assert_int_equal(header.features, source.features);
	assert_int_equal(header.flags, source.flags);
	assert_int_equal(header.n_connections, N);
	for (uint32_t i = 0; i < N; i++) {
		transfer_get_connection(bytes, i, &connection);
		assert_int_equal(connection.guest_port, 0xffff0000 + i);
		assert_int_equal(connection.host_port, i);
		assert_int_equal(connection.type, i % 2 + 1);
		assert_int_equal(connection.peer_cid, 2 + i);
	}
	free(bytes);
}

/* Byte by byte: a stream outlives the program that wrote it. */
static void test_the_format_stands(void **state)
{
	static const uint8_t expected[] = {
		'v', 's', 'o',	'c',  'k', 'd', 0x1a, '\n', 1,	  0, 0, 0, 60, 0, 0, 0, 3, 0, 0,
		0,   0,	  0,	0,    0,   0,	0,    0,    0x70, 1, 0, 0, 0,  1, 0, 0, 0, 1, 0,
		0,   0,	  0x39, 0x30, 0,   0,	22,   0,    0,	  0, 1, 0, 0,  0, 2, 0, 0, 0,
	};
	struct transfer_connection connection = {12345, 22, 1, 2};
	struct transfer_header header = {3, 0x170000000, STATE_FLAG_DRIVER, 1};
	uint32_t crc = UINT32_MAX, got;
	uint8_t bytes[60];

	(void)state;
	transfer_put_header(bytes, &header);
	transfer_put_connection(bytes, 0, &connection);
	transfer_put_checksum(bytes, 1);
	assert_int_equal(transfer_len(1), sizeof(bytes));
	assert_memory_equal(bytes, expected, sizeof(expected));
	/* The CRC of IEEE 802.3, made another way: bit after bit, highest power first. */
	for (size_t i = 0; i < 8 * sizeof(expected); i++) {
		uint32_t bit = (expected[i / 8] >> i % 8 & 1) ^ (crc & 1);

		crc = crc >> 1 ^ (bit ? UINT32_C(0xedb88320) : 0);
	}
	memcpy(&got, bytes + sizeof(expected), sizeof(got));
	assert_int_equal(got, ~crc);
}

static void test_a_state_without_connections_is_whole(void **state)
{
	struct transfer_header header = {.guest_cid = 3}, got;
	uint8_t bytes[44];

	(void)state;
	assert_int_equal(transfer_len(0), sizeof(bytes));
	transfer_put_header(bytes, &header);
	transfer_put_checksum(bytes, 0);
	assert_int_equal(transfer_check(bytes, sizeof(bytes), &got), STATE_GOOD);
	assert_int_equal(got.guest_cid, 3);
	assert_int_equal(got.flags, 0);
	assert_int_equal(got.n_connections, 0);
}

static void test_no_bytes_at_all_are_a_state_of_which_nothing_is_known(void **state)
{
	struct transfer_header header = {.guest_cid = 1, .features = 1, .n_connections = 1};

	(void)state;
	assert_int_equal(transfer_check((const uint8_t *)"", 0, &header), STATE_GOOD);
	assert_int_equal(header.flags, STATE_FLAG_UNKNOWN);
	assert_int_equal(header.guest_cid, 0);
	assert_int_equal(header.features, 0);
	assert_int_equal(header.n_connections, 0);
}

static void test_every_truncation_is_refused(void **state)
{
	uint8_t *bytes = compose();

	(void)state;
	for (size_t len = 1; len < LEN; len++)
		assert_int_equal(check(bytes, len),
				 len < transfer_len(0) ? STATE_NOT_OURS : STATE_WRONG_LENGTH);
	free(bytes);
}

/* Also where what was cut off leaves a length that would be right, were it said so. */
static void test_a_truncation_that_is_owned_up_to_is_refused(void **state)
{
	uint8_t *bytes = compose();

	(void)state;
	for (uint32_t n = 0; n < N; n++) {
		put32(bytes + 12, (uint32_t)transfer_len(n));
		assert_int_equal(check(bytes, transfer_len(n)), STATE_WRONG_LENGTH);
		put32(bytes + 36, n);
		assert_int_equal(check(bytes, transfer_len(n)), STATE_WRONG_CHECKSUM);
		put32(bytes + 36, N);
	}
	free(bytes);
}

static void test_every_flipped_bit_is_refused(void **state)
{
	uint8_t *bytes = compose();

	(void)state;
	for (size_t i = 0; i < 8 * (size_t)LEN; i++) {
		enum state_reason reason;

		bytes[i / 8] ^= (uint8_t)(1 << i % 8);
		reason = check(bytes, LEN);
		assert_int_not_equal(reason, STATE_GOOD);
		assert_in_range(reason, STATE_NOT_OURS, STATE_REASON_MAX - 1);
		bytes[i / 8] ^= (uint8_t)(1 << i % 8);
	}
	assert_int_equal(check(bytes, LEN), STATE_GOOD);
	free(bytes);
}

static void test_bytes_behind_the_end_are_refused(void **state)
{
	uint8_t bytes[LEN + 16] = {0}, *good = compose();

	(void)state;
	memcpy(bytes, good, LEN);
	free(good);
	for (size_t n = 1; n <= 16; n++)
		assert_int_equal(check(bytes, LEN + n), STATE_WRONG_LENGTH);
}

static void test_a_state_that_is_sealed_anew_is_still_looked_at(void **state)
{
	static const struct {
		size_t at;
		uint32_t value;
		enum state_reason reason;
	} cases[] = {
		{0, 0, STATE_NOT_OURS},
		{4, 0, STATE_NOT_OURS},
		{8, 0, STATE_OTHER_VERSION},
		{8, TRANSFER_VERSION + 1, STATE_OTHER_VERSION},
		{8, UINT32_MAX, STATE_OTHER_VERSION},
		{12, 0, STATE_WRONG_LENGTH},
		{12, LEN - 1, STATE_WRONG_LENGTH},
		{12, UINT32_MAX, STATE_WRONG_LENGTH},
		{36, 0, STATE_WRONG_LENGTH},
		{36, N + 1, STATE_WRONG_LENGTH},
		/* times 16 it is N * 16 again, in 32 bits */
		{36, N + UINT32_C(0x40000000), STATE_WRONG_LENGTH},
		{36, UINT32_MAX, STATE_WRONG_LENGTH},
		{32, STATE_FLAG_UNKNOWN, STATE_OTHER_VERSION},
		{32, 1u << 31, STATE_OTHER_VERSION},
		{32, 0, STATE_GOOD},
		/* Of no meaning here; whoever knows features and ports looks at them. */
		{24, UINT32_MAX, STATE_GOOD},
		{40, 0, STATE_GOOD},
		{48, 77, STATE_GOOD},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint8_t *bytes = compose();

		put32(bytes + cases[i].at, cases[i].value);
		transfer_put_checksum(bytes, N);
		assert_int_equal(check(bytes, LEN), cases[i].reason);
		free(bytes);
	}
}

static void test_garbage_of_any_length_is_refused(void **state)
{
	static uint8_t garbage[4096];
	uint32_t random = 1;

	(void)state;
	for (size_t i = 0; i < sizeof(garbage); i++) {
		random = random * 1664525 + 1013904223;
		garbage[i] = (uint8_t)(random >> 24);
	}
	for (size_t len = 1; len < sizeof(garbage); len += 37)
		assert_int_equal(check(garbage, len), STATE_NOT_OURS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_is_written_is_read),
		cmocka_unit_test(test_the_format_stands),
		cmocka_unit_test(test_a_state_without_connections_is_whole),
		cmocka_unit_test(test_no_bytes_at_all_are_a_state_of_which_nothing_is_known),
		cmocka_unit_test(test_every_truncation_is_refused),
		cmocka_unit_test(test_a_truncation_that_is_owned_up_to_is_refused),
		cmocka_unit_test(test_every_flipped_bit_is_refused),
		cmocka_unit_test(test_bytes_behind_the_end_are_refused),
		cmocka_unit_test(test_a_state_that_is_sealed_anew_is_still_looked_at),
		cmocka_unit_test(test_garbage_of_any_length_is_refused),
	};

	return cmocka_run_group_tests_name("transfer", tests, NULL, NULL);
}
