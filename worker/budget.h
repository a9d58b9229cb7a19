/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How much memory the buffers of a device may take. What a guest is told it may send
 * must have room whenever it comes, so a connection's part is set aside when it begins
 * and given back at its end: nothing that lives is ever short of it. Each gets at most
 * a sixteenth of what is left, so many stay possible; and who finds too little is
 * refused. Pure functions on a struct.
 */

#include <stdint.h>

/* A buffer is never smaller, unless it is to be: then more connections would crawl. */
#define BUDGET_BUFFER_MIN (16u * 1024)

struct budget {
	uint64_t limit; /* bytes; 0: none */
	uint64_t reserved;
};

/* Memory that a buffer of so many bytes takes at most. */
uint32_t budget_cost(uint32_t buffer_len);

/* How long the buffer of a connection that begins now may be, at most len; 0: there is no room. */
uint32_t budget_offer(const struct budget *budget, uint32_t len);
