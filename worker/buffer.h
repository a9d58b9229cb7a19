/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a guest sent and the host program has not taken yet: a queue of bytes
 * per connection, in chunks out of one pool that all connections share. A chunk
 * is in use only while bytes wait in it, and pages of chunks beyond a small
 * stock go back to the kernel as soon as they are free.
 *
 * The pool lies in a shared memory file, so a replacement worker finds the
 * bytes where they are. No heap after buffer_pool_init(). System call: madvise.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define BUFFER_CHUNK_LEN (16u * 1024)

/*
 * The longest message that is carried, either way: a unix socket takes little more
 * than four MiB at once, however large its buffers are.
 */
#define BUFFER_MESSAGE_MAX (4u * 1024 * 1024)

/* So many parts hold a message of that length, and the head in front of it. */
#define BUFFER_PARTS_MAX (BUFFER_MESSAGE_MAX / BUFFER_CHUNK_LEN + 2)

struct buffer_pool {
	uint8_t *start;
	uint32_t n_chunks;
	uint32_t *next; /* for each chunk: the one behind it in its queue or the free list */
	uint32_t first_free;
	uint32_t n_touched; /* chunks from here on were never used */
};

struct buffer {
	uint32_t first, last; /* chunks; meaningless while len is 0 */
	uint32_t skip;	      /* bytes of the first chunk that are gone */
	uint32_t len;	      /* bytes in the queue */
};

/* How long a pool must be so that n buffers of len bytes can be full at once. */
uint64_t buffer_pool_len(uint32_t n_buffers, uint32_t buffer_len);

/* Allocates the table of chunks. false when there is no memory. */
bool buffer_pool_init(struct buffer_pool *pool, void *start, uint64_t len);

/* Copy the parts to the end. false when the pool is too small: nothing was added. */
bool buffer_append(struct buffer_pool *pool, struct buffer *buffer, const struct iovec *parts,
		   size_t n_parts);

/*
 * Make an empty buffer one of len bytes, at most BUFFER_MESSAGE_MAX, that the
 * caller writes. Returns how many parts they are, in ret_parts; 0: the pool is too
 * small.
 */
size_t buffer_make(struct buffer_pool *pool, struct buffer *buffer, uint32_t len,
		   struct iovec ret_parts[static BUFFER_PARTS_MAX]);

/* Write over bytes that are in the buffer, or read them. */
void buffer_overwrite(const struct buffer_pool *pool, const struct buffer *buffer, uint32_t at,
		      const void *bytes, size_t len);
void buffer_read(const struct buffer_pool *pool, const struct buffer *buffer, uint32_t at,
		 void *ret_bytes, size_t len);

/* The first bytes, as at most n_parts_max parts. Returns how many. */
size_t buffer_peek(const struct buffer_pool *pool, const struct buffer *buffer,
		   struct iovec *ret_parts, size_t n_parts_max);

/* The first len bytes are gone; len is at most the buffer's. */
void buffer_consume(struct buffer_pool *pool, struct buffer *buffer, uint32_t len);

/*
 * A worker takes over from another one, whose pool this is: the memory takes the
 * place of the one before, with room for no more than that had, and no chunk is in
 * use. false when it is larger. Then each chunk in which bytes wait is named, each
 * buffer's in order, its skip and len being set; and at last the rest is free, and so
 * is what was consumed meanwhile.
 * What lies in the memory is bytes for host programs and nothing else.
 */
bool buffer_pool_adopt(struct buffer_pool *pool, void *start, uint64_t len);
/* false: there is no such chunk, or it was named before. */
bool buffer_adopt_chunk(struct buffer_pool *pool, struct buffer *buffer, bool is_first,
			uint32_t chunk);
void buffer_pool_settle(struct buffer_pool *pool);

/* The chunks of a buffer for whoever comes next: how many, and from `first` on which. */
uint32_t buffer_n_chunks(const struct buffer *buffer);
uint32_t buffer_chunk_behind(const struct buffer_pool *pool, uint32_t chunk);
