/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Replacements of the worker under load: connections that are busy both ways, every
 * byte looked at, and how long the data path stood still each time. What is given
 * out is text, and JSON where a file is named.
 */

#include <stddef.h>

#include "tests/bench/backend.h"

#define REPLACEMENTS_MAX 100000

/* 0 when nothing was lost and nothing failed; else 1, with the reason on stderr. */
int replacements_run(const struct backend_command *command, size_t n, const char *json);
