/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Replacements of the worker under load: connections that are busy both ways, every
 * byte looked at, and how long the data path stood still each time. Under two loads: a
 * fixed rate, which leaves something of the processors, and as much as goes, which
 * leaves nothing. What is given out is text, and JSON where a file is named.
 */

#include <stddef.h>
#include <stdint.h>

#include "tests/bench/backend.h"

#define REPLACEMENTS_MAX 100000

/*
 * n with each load; rate: bytes a second and direction. 0 when nothing was lost and nothing
 * failed; else 1, with the reason on stderr.
 */
int replacements_run(const struct backend_command *command, size_t n, uint64_t rate,
		     const char *json);
