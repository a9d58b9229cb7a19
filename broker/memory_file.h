/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A file in memory, zero throughout, for workers to share with their
 * successors: sealed before anybody else has it, so nobody can be hurt by a
 * change of its size. Not for the confined front, which opens nothing.
 */

#include <stdint.h>

/* The fd, close-on-exec, or negative errno. name is for those who look into /proc. */
int memory_file_make(const char *name, uint64_t size);
