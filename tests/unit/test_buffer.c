/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/buffer.h"

#define CHUNK BUFFER_CHUNK_LEN

static struct buffer_pool pool;
static uint64_t pool_len;
static uint64_t seed;

static uint32_t draw(uint32_t below)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(seed >> 33) % below;
}

/* Exactly so long: a byte behind it is a fault. */
static void make_pool(uint64_t len)
{
	void *start = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(start, MAP_FAILED);
	pool_len = len;
	seed = 1;
	assert_true(buffer_pool_init(&pool, start, len));
}

static void drop_pool(void)
{
	munmap(pool.start, pool_len);
	free(pool.next);
}

static uint32_t n_free(void)
{
	uint32_t n = pool.n_chunks - pool.n_touched;

	for (uint32_t chunk = pool.first_free; chunk != UINT32_MAX; chunk = pool.next[chunk])
		n++;
	return n;
}

static uint8_t byte_at(uint32_t stream, uint64_t at)
{
	return (uint8_t)((at * 131 + (at >> 9)) ^ (stream * 77));
}

/* A stream: what was put in so far, and what was taken. */
struct stream {
	struct buffer buffer;
	uint64_t n_in, n_out;
};

static bool append(struct stream *streams, uint32_t number, uint32_t len)
{
	static uint8_t bytes[1 << 20];
	struct stream *stream = &streams[number];
	struct iovec parts[4];
	uint32_t first = len / 3, second = len / 2;
	bool done;

	for (uint32_t i = 0; i < len; i++)
		bytes[i] = byte_at(number, stream->n_in + i);
	parts[0] = (struct iovec){bytes, first};
	parts[1] = (struct iovec){bytes + first, 0};
	parts[2] = (struct iovec){bytes + first, second - first};
	parts[3] = (struct iovec){bytes + second, len - second};
	done = buffer_append(&pool, &stream->buffer, parts, 4);
	if (done)
		stream->n_in += len;
	return done;
}

/* Look at everything, in few parts or many; take some of it. */
static void check_and_consume(struct stream *streams, uint32_t number, uint32_t len)
{
	struct stream *stream = &streams[number];
	struct iovec parts[80];
	size_t n = buffer_peek(&pool, &stream->buffer, parts, 80);
	uint64_t at = stream->n_out;

	assert_int_equal(stream->buffer.len, stream->n_in - stream->n_out);
	for (size_t i = 0; i < n; i++) {
		const uint8_t *bytes = parts[i].iov_base;

		assert_in_range(parts[i].iov_len, 1, CHUNK);
		for (size_t k = 0; k < parts[i].iov_len; k++)
			if (bytes[k] != byte_at(number, at + k))
				fail_msg("byte %lu of %u", (unsigned long)(at + k), number);
		at += parts[i].iov_len;
	}
	if (n < 80)
		assert_int_equal(at, stream->n_in);
	if (n > 1) {
		assert_int_equal(buffer_peek(&pool, &stream->buffer, parts, n - 1), n - 1);
		assert_int_equal(buffer_peek(&pool, &stream->buffer, parts, 0), 0);
	}
	buffer_consume(&pool, &stream->buffer, len);
	stream->n_out += len;
	assert_int_equal(stream->buffer.len, stream->n_in - stream->n_out);
}

static void test_bytes_come_out_as_they_went_in(void **state)
{
	struct stream streams[5] = {0};

	(void)state;
	make_pool(55 * CHUNK);
	for (uint32_t i = 0; i < 2000; i++) {
		uint32_t number = draw(5);
		struct stream *stream = &streams[number];
		uint32_t max = draw(3) ? 900 : 3 * CHUNK;

		if (draw(2) && stream->buffer.len < 6 * CHUNK)
			assert_true(append(streams, number, draw(max)));
		else
			check_and_consume(
				streams, number,
				draw((stream->buffer.len < max ? stream->buffer.len : max) + 1));
	}
	for (uint32_t i = 0; i < 5; i++)
		check_and_consume(streams, i, streams[i].buffer.len);
	assert_int_equal(n_free(), 55);
	drop_pool();
}

static void test_borders_of_chunks_lose_no_byte(void **state)
{
	static const uint32_t lens[] = {1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK};

	(void)state;
	make_pool(8 * CHUNK);
	for (size_t a = 0; a < 6; a++)
		for (size_t b = 0; b < 6; b++)
			for (size_t c = 0; c < 6; c++) {
				struct stream stream = {0};
				uint32_t taken = lens[c];

				assert_true(append(&stream, 0, lens[a]));
				assert_true(append(&stream, 0, lens[b]));
				if (taken > lens[a] + lens[b])
					taken = lens[a] + lens[b];
				check_and_consume(&stream, 0, taken);
				assert_true(append(&stream, 0, lens[a]));
				check_and_consume(&stream, 0, stream.buffer.len);
				assert_int_equal(n_free(), 8);
			}
	drop_pool();
}

static void test_a_pool_that_is_too_small_adds_nothing(void **state)
{
	struct stream streams[2] = {0};

	(void)state;
	make_pool(3 * CHUNK);
	assert_false(append(streams, 0, 3 * CHUNK + 1));
	assert_int_equal(streams[0].buffer.len, 0);
	assert_int_equal(n_free(), 3);

	assert_true(append(streams, 0, CHUNK + 10));
	assert_false(append(streams, 0, 2 * CHUNK));
	assert_false(append(streams, 1, CHUNK + 1));
	assert_int_equal(n_free(), 1);
	assert_int_equal(streams[0].buffer.len, CHUNK + 10);
	/* What fits still does, to the last byte. */
	assert_true(append(streams, 0, 2 * CHUNK - 10));
	assert_int_equal(n_free(), 0);
	assert_false(append(streams, 0, 1));
	assert_true(append(streams, 0, 0));
	check_and_consume(streams, 0, 3 * CHUNK);
	assert_int_equal(n_free(), 3);
	drop_pool();
}

static void test_free_chunks_are_used_before_new_ones(void **state)
{
	struct stream stream = {0};

	(void)state;
	make_pool(100 * CHUNK);
	for (uint32_t i = 0; i < 1000; i++) {
		assert_true(append(&stream, 0, CHUNK + 1));
		check_and_consume(&stream, 0, CHUNK + 1);
	}
	assert_int_equal(pool.n_touched, 2);
	drop_pool();
}

static void test_a_chunk_is_in_use_only_while_bytes_wait_in_it(void **state)
{
	struct stream stream = {0};

	(void)state;
	make_pool(4 * CHUNK);
	assert_true(append(&stream, 0, 2 * CHUNK));
	assert_int_equal(n_free(), 2);
	check_and_consume(&stream, 0, CHUNK - 1);
	assert_int_equal(n_free(), 2);
	check_and_consume(&stream, 0, 1);
	assert_int_equal(n_free(), 3);
	check_and_consume(&stream, 0, CHUNK);
	assert_int_equal(n_free(), 4);
	drop_pool();
}

static void test_a_pool_of_the_computed_length_holds_every_buffer_full(void **state)
{
	static const uint32_t lens[] = {1, 100, CHUNK, CHUNK + 1, 64 * 1024, 100000};

	(void)state;
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		struct stream streams[7] = {0};

		make_pool(buffer_pool_len(7, lens[i]));
		for (uint32_t number = 0; number < 7; number++) {
			/* At every bad alignment: the first byte is the last of a chunk. */
			assert_true(append(streams, number, CHUNK - number));
			check_and_consume(streams, number, CHUNK - number - 1);
			assert_true(append(streams, number, lens[i] - streams[number].buffer.len));
		}
		for (uint32_t number = 0; number < 7; number++) {
			assert_int_equal(streams[number].buffer.len, lens[i]);
			check_and_consume(streams, number, lens[i]);
		}
		drop_pool();
	}
}

static void test_full_buffers_that_move_on_never_need_more_than_the_pool(void **state)
{
	struct stream streams[3] = {0};
	const uint32_t len = 3 * CHUNK + 5;

	(void)state;
	make_pool(buffer_pool_len(3, len));
	for (uint32_t i = 0; i < 400; i++) {
		uint32_t number = draw(3);
		uint32_t n = draw(draw(20) ? 300 : 2 * CHUNK);

		if (n > streams[number].buffer.len)
			n = streams[number].buffer.len;
		check_and_consume(streams, number, n);
		assert_true(append(streams, number, len - streams[number].buffer.len));
	}
	drop_pool();
}

static void test_pages_beyond_the_stock_go_back_to_the_kernel(void **state)
{
	const uint32_t n_chunks = 300;
	struct stream stream = {0};
	unsigned char resident[CHUNK / 4096];

	(void)state;
	make_pool((uint64_t)n_chunks * CHUNK);
	for (uint32_t i = 0; i < n_chunks; i++)
		assert_true(append(&stream, 0, CHUNK));
	for (uint32_t i = 0; i < n_chunks; i++)
		check_and_consume(&stream, 0, CHUNK);
	assert_int_equal(mincore(pool.start, CHUNK, resident), 0);
	assert_int_equal(resident[0] & 1, 1);
	assert_int_equal(mincore(pool.start + (size_t)(n_chunks - 1) * CHUNK, CHUNK, resident), 0);
	assert_int_equal(resident[0] & 1, 0);
	/* And are there again when they are needed. */
	for (uint32_t i = 0; i < n_chunks; i++)
		assert_true(append(&stream, 0, CHUNK));
	check_and_consume(&stream, 0, CHUNK);
	drop_pool();
}

static void test_a_pool_of_too_many_chunks_is_not_made(void **state)
{
	struct buffer_pool none;

	(void)state;
	assert_false(buffer_pool_init(&none, NULL, (uint64_t)UINT32_MAX * CHUNK));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bytes_come_out_as_they_went_in),
		cmocka_unit_test(test_borders_of_chunks_lose_no_byte),
		cmocka_unit_test(test_a_pool_that_is_too_small_adds_nothing),
		cmocka_unit_test(test_free_chunks_are_used_before_new_ones),
		cmocka_unit_test(test_a_chunk_is_in_use_only_while_bytes_wait_in_it),
		cmocka_unit_test(test_a_pool_of_the_computed_length_holds_every_buffer_full),
		cmocka_unit_test(test_full_buffers_that_move_on_never_need_more_than_the_pool),
		cmocka_unit_test(test_pages_beyond_the_stock_go_back_to_the_kernel),
		cmocka_unit_test(test_a_pool_of_too_many_chunks_is_not_made),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
