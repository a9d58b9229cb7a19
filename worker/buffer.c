/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/buffer.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define NO_CHUNK UINT32_MAX
/* While a pool is taken over: in no queue so far. */
#define UNNAMED_CHUNK (UINT32_MAX - 1)

/* Chunks below this number keep their pages when free: 4 MiB that stay warm. */
#define KEPT_CHUNKS 256

/* A queue of len bytes may begin and end in the middle of a chunk. */
uint64_t buffer_pool_len(uint32_t n_buffers, uint32_t buffer_len)
{
	uint64_t n_chunks = ((uint64_t)buffer_len + BUFFER_CHUNK_LEN - 1) / BUFFER_CHUNK_LEN + 1;

	return n_chunks * BUFFER_CHUNK_LEN * n_buffers;
}

bool buffer_pool_init(struct buffer_pool *pool, void *start, uint64_t len)
{
	uint64_t n_chunks = len / BUFFER_CHUNK_LEN;

	if (n_chunks >= UNNAMED_CHUNK)
		return false;
	*pool = (struct buffer_pool){
		.start = start,
		.n_chunks = (uint32_t)n_chunks,
		.next = calloc((size_t)n_chunks, sizeof(uint32_t)),
		.first_free = NO_CHUNK,
	};
	return pool->next != NULL;
}

static uint8_t *chunk_start(const struct buffer_pool *pool, uint32_t chunk)
{
	return pool->start + (size_t)chunk * BUFFER_CHUNK_LEN;
}

static uint32_t take_chunk(struct buffer_pool *pool)
{
	uint32_t chunk = pool->first_free;

	if (chunk != NO_CHUNK) {
		pool->first_free = pool->next[chunk];
		return chunk;
	}
	return pool->n_touched < pool->n_chunks ? pool->n_touched++ : NO_CHUNK;
}

static void give_chunk(struct buffer_pool *pool, uint32_t chunk)
{
	/* Failing to give memory back costs memory, nothing else. */
	if (chunk >= KEPT_CHUNKS)
		(void)madvise(chunk_start(pool, chunk), BUFFER_CHUNK_LEN, MADV_REMOVE);
	pool->next[chunk] = pool->first_free;
	pool->first_free = chunk;
}

/* Link as many chunks behind the buffer as len more bytes need. */
static bool reserve(struct buffer_pool *pool, struct buffer *buffer, size_t len)
{
	uint32_t first = NO_CHUNK, last = NO_CHUNK;
	size_t room = 0;

	if (buffer->len > 0)
		room = (BUFFER_CHUNK_LEN - (buffer->skip + buffer->len) % BUFFER_CHUNK_LEN) %
		       BUFFER_CHUNK_LEN;
	while (room < len) {
		uint32_t chunk = take_chunk(pool);

		if (chunk == NO_CHUNK) {
			for (; first != NO_CHUNK; first = last) {
				last = pool->next[first];
				give_chunk(pool, first);
			}
			return false;
		}
		pool->next[chunk] = NO_CHUNK;
		if (first == NO_CHUNK)
			first = chunk;
		else
			pool->next[last] = chunk;
		last = chunk;
		room += BUFFER_CHUNK_LEN;
	}
	if (first == NO_CHUNK)
		return true;
	if (buffer->len > 0) {
		pool->next[buffer->last] = first;
	} else {
		buffer->first = first;
		buffer->last = first;
		buffer->skip = 0;
	}
	return true;
}

/* The chunks are there; buffer->last is the one that is being filled. */
static void fill(struct buffer_pool *pool, struct buffer *buffer, const uint8_t *bytes, size_t len)
{
	while (len > 0) {
		uint32_t offset = (buffer->skip + buffer->len) % BUFFER_CHUNK_LEN;
		size_t room = BUFFER_CHUNK_LEN - offset;
		size_t n = len < room ? len : room;

		if (offset == 0 && buffer->len > 0)
			buffer->last = pool->next[buffer->last];
		memcpy(chunk_start(pool, buffer->last) + offset, bytes, n);
		buffer->len += (uint32_t)n;
		bytes += n;
		len -= n;
	}
}

bool buffer_append(struct buffer_pool *pool, struct buffer *buffer, const struct iovec *parts,
		   size_t n_parts)
{
	size_t len = 0;

	for (size_t i = 0; i < n_parts; i++)
		len += parts[i].iov_len;
	if (!reserve(pool, buffer, len))
		return false;
	for (size_t i = 0; i < n_parts; i++)
		fill(pool, buffer, parts[i].iov_base, parts[i].iov_len);
	return true;
}

size_t buffer_make(struct buffer_pool *pool, struct buffer *buffer, uint32_t len,
		   struct iovec ret_parts[static BUFFER_PARTS_MAX])
{
	if (!reserve(pool, buffer, len))
		return 0;
	buffer->len = len;
	return buffer_peek(pool, buffer, ret_parts, BUFFER_PARTS_MAX);
}

/* The byte at an offset of the buffer, and how many follow it in its chunk. */
static uint8_t *find_byte(const struct buffer_pool *pool, const struct buffer *buffer, uint32_t at,
			  size_t *ret_room)
{
	uint32_t chunk = buffer->first, offset = buffer->skip + at;

	for (; offset >= BUFFER_CHUNK_LEN; offset -= BUFFER_CHUNK_LEN)
		chunk = pool->next[chunk];
	*ret_room = BUFFER_CHUNK_LEN - offset;
	return chunk_start(pool, chunk) + offset;
}

void buffer_overwrite(const struct buffer_pool *pool, const struct buffer *buffer, uint32_t at,
		      const void *bytes, size_t len)
{
	const uint8_t *from = bytes;

	while (len > 0) {
		size_t room;
		uint8_t *place = find_byte(pool, buffer, at, &room);
		size_t n = len < room ? len : room;

		memcpy(place, from, n);
		from += n;
		at += (uint32_t)n;
		len -= n;
	}
}

void buffer_read(const struct buffer_pool *pool, const struct buffer *buffer, uint32_t at,
		 void *ret_bytes, size_t len)
{
	uint8_t *to = ret_bytes;

	while (len > 0) {
		size_t room;
		const uint8_t *place = find_byte(pool, buffer, at, &room);
		size_t n = len < room ? len : room;

		memcpy(to, place, n);
		to += n;
		at += (uint32_t)n;
		len -= n;
	}
}

size_t buffer_peek(const struct buffer_pool *pool, const struct buffer *buffer,
		   struct iovec *ret_parts, size_t n_parts_max)
{
	uint32_t chunk = buffer->first, skip = buffer->skip, len = buffer->len;
	size_t n_parts = 0;

	while (len > 0 && n_parts < n_parts_max) {
		uint32_t n = BUFFER_CHUNK_LEN - skip;

		if (n > len)
			n = len;
		ret_parts[n_parts].iov_base = chunk_start(pool, chunk) + skip;
		ret_parts[n_parts].iov_len = n;
		n_parts++;
		len -= n;
		skip = 0;
		chunk = pool->next[chunk];
	}
	return n_parts;
}

void buffer_consume(struct buffer_pool *pool, struct buffer *buffer, uint32_t len)
{
	while (len > 0) {
		uint32_t n = BUFFER_CHUNK_LEN - buffer->skip;
		uint32_t next = pool->next[buffer->first];

		if (n > buffer->len)
			n = buffer->len;
		if (n > len) {
			buffer->skip += len;
			buffer->len -= len;
			return;
		}
		len -= n;
		buffer->len -= n;
		buffer->skip += n;
		if (buffer->len == 0 || buffer->skip == BUFFER_CHUNK_LEN) {
			give_chunk(pool, buffer->first);
			buffer->first = next;
			buffer->skip = 0;
		}
	}
}

bool buffer_pool_adopt(struct buffer_pool *pool, void *start, uint64_t len)
{
	uint64_t n_chunks = len / BUFFER_CHUNK_LEN;

	if (n_chunks > pool->n_chunks)
		return false;
	pool->start = start;
	pool->n_chunks = (uint32_t)n_chunks;
	pool->first_free = NO_CHUNK;
	pool->n_touched = 0;
	for (uint32_t i = 0; i < pool->n_chunks; i++)
		pool->next[i] = UNNAMED_CHUNK;
	return true;
}

uint32_t buffer_n_chunks(const struct buffer *buffer)
{
	if (buffer->len == 0)
		return 0;
	return (uint32_t)(((uint64_t)buffer->skip + buffer->len + BUFFER_CHUNK_LEN - 1) /
			  BUFFER_CHUNK_LEN);
}

uint32_t buffer_chunk_behind(const struct buffer_pool *pool, uint32_t chunk)
{
	return pool->next[chunk];
}

bool buffer_adopt_chunk(struct buffer_pool *pool, struct buffer *buffer, bool is_first,
			uint32_t chunk)
{
	if (chunk >= pool->n_chunks || pool->next[chunk] != UNNAMED_CHUNK)
		return false;
	if (is_first)
		buffer->first = chunk;
	else
		pool->next[buffer->last] = chunk;
	buffer->last = chunk;
	pool->next[chunk] = NO_CHUNK;
	if (chunk >= pool->n_touched)
		pool->n_touched = chunk + 1;
	return true;
}

void buffer_pool_settle(struct buffer_pool *pool)
{
	/* Chunks that were named for a while are as free as those that never were. */
	while (pool->first_free != NO_CHUNK) {
		uint32_t chunk = pool->first_free;

		pool->first_free = pool->next[chunk];
		pool->next[chunk] = UNNAMED_CHUNK;
	}
	while (pool->n_touched > 0 && pool->next[pool->n_touched - 1] == UNNAMED_CHUNK)
		pool->n_touched--;
	/* Downwards, so that those with warm pages are taken first. */
	for (uint32_t i = pool->n_touched; i-- > 0;) {
		if (pool->next[i] != UNNAMED_CHUNK)
			continue;
		pool->next[i] = pool->first_free;
		pool->first_free = i;
	}
}
