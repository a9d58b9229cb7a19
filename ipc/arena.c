/* SPDX-License-Identifier: Apache-2.0 */
#include "ipc/arena.h"

#include <stddef.h>
#include <stdint.h>

/* An envelope, one body and protobuf-c's book-keeping, a few times over. */
#define ARENA_SIZE	4096
#define ARENA_ALIGNMENT 16

static _Alignas(ARENA_ALIGNMENT) uint8_t arena[ARENA_SIZE];
static size_t arena_used;

static void *allocate(void *unused, size_t size)
{
	void *place = arena + arena_used;

	(void)unused;
	if (size > ARENA_SIZE - arena_used)
		return NULL;
	arena_used += (size + ARENA_ALIGNMENT - 1) & ~(size_t)(ARENA_ALIGNMENT - 1);
	if (arena_used > ARENA_SIZE)
		arena_used = ARENA_SIZE;
	return place;
}

static void release(void *unused, void *place)
{
	(void)unused;
	(void)place;
}

ProtobufCAllocator arena_allocator = {
	.alloc = allocate,
	.free = release,
};

void arena_reset(void)
{
	arena_used = 0;
}

bool arena_has_unknown_fields(const ProtobufCMessage *outer, const ProtobufCMessage *inner)
{
	return outer->n_unknown_fields > 0 || (inner && inner->n_unknown_fields > 0);
}
