/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The figures of a run, for programs. 0 or negative errno. */

#include "tests/bench/results.h"

int output_json(const struct results *results, const char *path);

/* SVG files of fixed names in a directory, made by gnuplot. -ENOENT: it is not installed. */
int output_plots(const struct results *results, const char *directory);
