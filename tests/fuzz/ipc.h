/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Messages between front and worker, made as an input wants them: of every kind that the
 * table has, with a value in each field. What a message consists of is protobuf-c's
 * business, so one that is added is made without a word here.
 */

#include "ipc/message.h"
#include "tests/fuzz/fuzz.h"

/* What the sequence of a command and a field called "sequence" are set to; and others of that name.
 */
struct ipc_hints {
	uint32_t sequence;
	const char *name; /* NULL: none */
	uint64_t value;
};

/*
 * A message that leads to that end, relayed ones included. Valid until the next call.
 */
const Vsockd__Envelope *ipc_make(struct input *input, enum message_direction direction,
				 const struct ipc_hints *hints);

/* The value of a body's field of that name; false when it has none. */
bool ipc_get(const Vsockd__Envelope *envelope, const char *name, uint64_t *ret);
