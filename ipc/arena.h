/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What protobuf-c decodes into: one static arena for this process instead of the
 * heap. A packet that repeats its body makes the decoder allocate again; more
 * than a few times is nothing that we pack, and decoding fails then. What was
 * decoded lives until the next arena_reset(). Single-threaded.
 */

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>

extern ProtobufCAllocator arena_allocator;

/* Forget what was decoded before; to be called before each decoding. */
void arena_reset(void);

/* Did this message, or the one in it (NULL: none), have a field that nobody knows? */
bool arena_has_unknown_fields(const ProtobufCMessage *outer, const ProtobufCMessage *inner);
