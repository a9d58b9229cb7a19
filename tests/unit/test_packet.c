/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "worker/packet.h"

#define BYTES 96

static const uint8_t wire[PACKET_HEADER_LEN] = {
	0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, /* src_cid */
	0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, /* dst_cid */
	0x21, 0x22, 0x23, 0x24,				/* src_port */
	0x31, 0x32, 0x33, 0x34,				/* dst_port */
	0x41, 0x42, 0x43, 0x44,				/* len */
	0x51, 0x52,					/* type */
	0x61, 0x62,					/* op */
	0x71, 0x72, 0x73, 0x74,				/* flags */
	0x81, 0x82, 0x83, 0x84,				/* buf_alloc */
	0x91, 0x92, 0x93, 0x94,				/* fwd_cnt */
};

static void check_header(const struct packet_header *header)
{
	assert_int_equal(header->src_cid, UINT64_C(0x0807060504030201));
	assert_int_equal(header->dst_cid, UINT64_C(0x1817161514131211));
	assert_int_equal(header->src_port, 0x24232221);
	assert_int_equal(header->dst_port, 0x34333231);
	assert_int_equal(header->len, 0x44434241);
	assert_int_equal(header->type, 0x5251);
	assert_int_equal(header->op, 0x6261);
	assert_int_equal(header->flags, 0x74737271);
	assert_int_equal(header->buf_alloc, 0x84838281);
	assert_int_equal(header->fwd_cnt, 0x94939291);
}

/* Three parts of one array, cut at two places. */
static void cut(uint8_t *bytes, size_t len, size_t first, size_t second, struct iovec parts[3])
{
	parts[0] = (struct iovec){bytes, first};
	parts[1] = (struct iovec){bytes + first, second - first};
	parts[2] = (struct iovec){bytes + second, len - second};
}

static void test_a_header_is_read_from_parts_cut_anywhere(void **state)
{
	uint8_t bytes[BYTES] = {0};

	(void)state;
	memcpy(bytes, wire, sizeof(wire));
	for (size_t first = 0; first <= BYTES; first++)
		for (size_t second = first; second <= BYTES; second++) {
			struct packet_header header = {0};
			struct iovec parts[3];

			cut(bytes, BYTES, first, second, parts);
			assert_true(packet_read_header(parts, 3, &header));
			check_header(&header);
		}
}

static void test_fewer_bytes_than_a_header_are_none(void **state)
{
	uint8_t bytes[BYTES] = {0};

	(void)state;
	for (size_t len = 0; len < PACKET_HEADER_LEN; len++)
		for (size_t first = 0; first <= len; first++) {
			struct packet_header header = {.len = 77};
			struct iovec parts[3];

			cut(bytes, len, first, len, parts);
			assert_false(packet_read_header(parts, 3, &header));
			assert_int_equal(header.len, 77);
		}
	assert_false(packet_read_header(NULL, 0, NULL));
}

static void test_a_header_is_written_over_parts_cut_anywhere(void **state)
{
	struct iovec whole = {(void *)wire, sizeof(wire)};
	struct packet_header header;

	(void)state;
	assert_true(packet_read_header(&whole, 1, &header));
	for (size_t first = 0; first <= BYTES; first++)
		for (size_t second = first; second <= BYTES; second++) {
			uint8_t bytes[BYTES];
			struct iovec parts[3];

			memset(bytes, 0xee, sizeof(bytes));
			cut(bytes, BYTES, first, second, parts);
			packet_write_header(parts, 3, &header);
			assert_memory_equal(bytes, wire, PACKET_HEADER_LEN);
			for (size_t i = PACKET_HEADER_LEN; i < BYTES; i++)
				assert_int_equal(bytes[i], 0xee);
		}
}

static void test_a_slice_is_what_lies_between_skip_and_len(void **state)
{
	uint8_t bytes[24];

	(void)state;
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)i;
	for (size_t first = 0; first <= 24; first++)
		for (size_t second = first; second <= 24; second++)
			for (size_t skip = 0; skip <= 26; skip++)
				for (size_t len = 0; len <= 26; len++) {
					struct iovec parts[3], slice[3];
					size_t n, at = skip, total = 0;

					cut(bytes, 24, first, second, parts);
					n = packet_slice(parts, 3, skip, len, slice);
					assert_in_range(n, 0, 3);
					for (size_t i = 0; i < n; i++) {
						/* None is empty: each is worth a place. */
						assert_int_not_equal(slice[i].iov_len, 0);
						assert_ptr_equal(slice[i].iov_base, bytes + at);
						at += slice[i].iov_len;
						total += slice[i].iov_len;
					}
					if (skip >= 24)
						assert_int_equal(total, 0);
					else
						assert_int_equal(total,
								 len < 24 - skip ? len : 24 - skip);
				}
}

static void test_a_slice_may_replace_its_parts(void **state)
{
	uint8_t bytes[10];
	struct iovec parts[3];

	(void)state;
	cut(bytes, 10, 2, 5, parts);
	assert_int_equal(packet_slice(parts, 3, 3, 100, parts), 2);
	assert_ptr_equal(parts[0].iov_base, bytes + 3);
	assert_int_equal(parts[0].iov_len, 2);
	assert_ptr_equal(parts[1].iov_base, bytes + 5);
	assert_int_equal(parts[1].iov_len, 5);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_header_is_read_from_parts_cut_anywhere),
		cmocka_unit_test(test_fewer_bytes_than_a_header_are_none),
		cmocka_unit_test(test_a_header_is_written_over_parts_cut_anywhere),
		cmocka_unit_test(test_a_slice_is_what_lies_between_skip_and_len),
		cmocka_unit_test(test_a_slice_may_replace_its_parts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
