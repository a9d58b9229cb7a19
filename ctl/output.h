/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Rows for people and for programs: a table with aligned columns, or JSON, one
 * array of objects. Rows are kept until the end, as widths are known then only.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OUTPUT_COLUMNS_MAX 24

enum output_kind {
	OUTPUT_TEXT,
	OUTPUT_NUMBER, /* "-" in a table when it is OUTPUT_NONE, null in JSON; so the rest */
	OUTPUT_AGE,    /* ms; JSON has seconds */
	OUTPUT_BYTES,  /* "1.5M" in a table */
	OUTPUT_HEX,    /* a string in JSON, as numbers there lose bits */
};

#define OUTPUT_NONE UINT64_MAX

struct output_column {
	const char *key;   /* in JSON; NULL: in the table alone */
	const char *title; /* in the table; NULL: in JSON alone */
	enum output_kind kind;
};

struct output {
	const struct output_column *columns;
	size_t n_columns;
	char **cells; /* as they are printed, row by row */
	size_t n_cells, n_cells_max;
	bool is_json;
};

void output_begin(struct output *output, bool is_json, const struct output_column *columns,
		  size_t n_columns);

/* The next cell, in the order of the columns. Numbers for all kinds but OUTPUT_TEXT. */
void output_number(struct output *output, uint64_t value);
void output_text(struct output *output, const char *text);

/* How many rows have been given. */
size_t output_n_rows(const struct output *output);

/* Print what there is to stdout and forget it. */
void output_end(struct output *output);

/* The same for a single row, a line a column. In JSON without the array. */
void output_end_list(struct output *output);

/* An age in ms for people, as "3m12s"; a number of bytes, as "1.5M". */
#define OUTPUT_HUMAN_MAX 32
const char *output_age(uint64_t ms, char text[static OUTPUT_HUMAN_MAX]);
const char *output_bytes(uint64_t n, char text[static OUTPUT_HUMAN_MAX]);
