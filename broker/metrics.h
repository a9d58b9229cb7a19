/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What is counted, in the text format of OpenMetrics 1.0, line by line: whoever
 * prints it keeps a position and no text. Counters are as they were last asked of
 * the workers (query.h).
 */

#include <stdbool.h>
#include <stdint.h>

#define METRICS_LINE_MAX 192 /* its newline and 0 included */

struct front;

/* All zero at first. */
struct metrics_position {
	uint32_t family, line, device, sample;
};

/* The next line, and on to the one behind it. false: there was none. */
bool metrics_line(const struct front *front, struct metrics_position *position,
		  char line[static METRICS_LINE_MAX]);
