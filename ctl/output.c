/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/output.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "ctl/client.h"

const char *output_age(uint64_t ms, char text[static OUTPUT_HUMAN_MAX])
{
	uint64_t s = ms / 1000;

	if (s < 60)
		snprintf(text, OUTPUT_HUMAN_MAX, "%" PRIu64 "s", s);
	else if (s < 3600)
		snprintf(text, OUTPUT_HUMAN_MAX, "%" PRIu64 "m%02" PRIu64 "s", s / 60, s % 60);
	else if (s < 86400)
		snprintf(text, OUTPUT_HUMAN_MAX, "%" PRIu64 "h%02" PRIu64 "m", s / 3600,
			 s % 3600 / 60);
	else
		snprintf(text, OUTPUT_HUMAN_MAX, "%" PRIu64 "d%02" PRIu64 "h", s / 86400,
			 s % 86400 / 3600);
	return text;
}

const char *output_bytes(uint64_t n, char text[static OUTPUT_HUMAN_MAX])
{
	static const char units[] = "KMGTPE";
	double scaled = (double)n;
	size_t unit = 0;

	if (n < 1024) {
		snprintf(text, OUTPUT_HUMAN_MAX, "%" PRIu64, n);
		return text;
	}
	for (scaled /= 1024; scaled >= 1024 && units[unit + 1]; unit++)
		scaled /= 1024;
	snprintf(text, OUTPUT_HUMAN_MAX, "%.1f%c", scaled, units[unit]);
	return text;
}

void output_begin(struct output *output, bool is_json, const struct output_column *columns,
		  size_t n_columns)
{
	*output = (struct output){
		.columns = columns,
		.n_columns = n_columns,
		.is_json = is_json,
	};
}

static void add(struct output *output, const char *text)
{
	char *copy = strdup(text);

	if (output->n_cells == output->n_cells_max) {
		output->n_cells_max = output->n_cells_max ? 2 * output->n_cells_max : 64;
		output->cells = reallocarray(output->cells, output->n_cells_max, sizeof(char *));
	}
	if (!copy || !output->cells)
		exit(complain(EX_OSERR, "out of memory"));
	output->cells[output->n_cells++] = copy;
}

static const struct output_column *next_column(const struct output *output)
{
	return &output->columns[output->n_cells % output->n_columns];
}

void output_number(struct output *output, uint64_t value)
{
	char text[OUTPUT_HUMAN_MAX];
	enum output_kind kind = next_column(output)->kind;

	if (value == OUTPUT_NONE)
		snprintf(text, sizeof(text), "%s", output->is_json ? "null" : "-");
	else if (kind == OUTPUT_HEX)
		snprintf(text, sizeof(text), output->is_json ? "\"0x%" PRIx64 "\"" : "0x%" PRIx64,
			 value);
	else if (kind == OUTPUT_AGE && output->is_json)
		snprintf(text, sizeof(text), "%" PRIu64 ".%03" PRIu64, value / 1000, value % 1000);
	else if (kind == OUTPUT_AGE)
		output_age(value, text);
	else if (kind == OUTPUT_BYTES && !output->is_json)
		output_bytes(value, text);
	else
		snprintf(text, sizeof(text), "%" PRIu64, value);
	add(output, text);
}

/* RFC 8259, 7: only these must be escaped; what is no ASCII does not occur. */
static void quote(const char *text, char *ret, size_t size)
{
	size_t len = 0;

	ret[len++] = '"';
	for (; *text && len + 3 < size; text++) {
		if (*text == '"' || *text == '\\')
			ret[len++] = '\\';
		ret[len++] = (unsigned char)*text < ' ' || (unsigned char)*text > '~' ? '?' : *text;
	}
	ret[len++] = '"';
	ret[len] = '\0';
}

void output_text(struct output *output, const char *text)
{
	char quoted[512];

	if (output->is_json) {
		quote(text, quoted, sizeof(quoted));
		text = quoted;
	}
	add(output, text);
}

size_t output_n_rows(const struct output *output)
{
	return output->n_cells / output->n_columns;
}

static void print_object(const struct output *output, size_t row)
{
	const char *separator = "";

	printf("{");
	for (size_t i = 0; i < output->n_columns; i++) {
		if (!output->columns[i].key)
			continue;
		printf("%s\"%s\": %s", separator, output->columns[i].key,
		       output->cells[row * output->n_columns + i]);
		separator = ", ";
	}
	printf("}");
}

static void print_json(const struct output *output)
{
	printf("[");
	for (size_t row = 0; row < output_n_rows(output); row++) {
		printf("%s\n  ", row ? "," : "");
		print_object(output, row);
	}
	printf("\n]\n");
}

static size_t last_title(const struct output *output)
{
	size_t last = 0;

	for (size_t i = 0; i < output->n_columns; i++)
		if (output->columns[i].title)
			last = i;
	return last;
}

/* Numbers end, texts begin in line; behind the last column is nothing. */
static void print_cell(const struct output *output, size_t column, const char *text, size_t width)
{
	bool is_last = column == last_title(output);

	if (output->columns[column].kind != OUTPUT_TEXT)
		printf("%*s", (int)width, text);
	else if (is_last)
		printf("%s", text);
	else
		printf("%-*s", (int)width, text);
	printf("%s", is_last ? "\n" : "  ");
}

static void print_table(const struct output *output)
{
	size_t widths[OUTPUT_COLUMNS_MAX] = {0};
	size_t n_columns = output->n_columns > 0 ? output->n_columns : 1;

	for (size_t i = 0; i < output->n_columns; i++)
		widths[i] = output->columns[i].title ? strlen(output->columns[i].title) : 0;
	for (size_t i = 0; i < output->n_cells; i++) {
		size_t len = strlen(output->cells[i]);

		if (len > widths[i % n_columns])
			widths[i % n_columns] = len;
	}
	for (size_t i = 0; i < output->n_columns; i++)
		if (output->columns[i].title)
			print_cell(output, i, output->columns[i].title, widths[i]);
	for (size_t i = 0; i < output->n_cells; i++)
		if (output->columns[i % n_columns].title)
			print_cell(output, i % n_columns, output->cells[i], widths[i % n_columns]);
}

static void forget(struct output *output)
{
	for (size_t i = 0; i < output->n_cells; i++)
		free(output->cells[i]);
	free(output->cells);
	output_begin(output, output->is_json, output->columns, output->n_columns);
}

void output_end(struct output *output)
{
	if (output->is_json)
		print_json(output);
	else
		print_table(output);
	forget(output);
}

static void print_list(const struct output *output)
{
	size_t width = 0;

	for (size_t i = 0; i < output->n_columns; i++)
		if (output->columns[i].title && strlen(output->columns[i].title) > width)
			width = strlen(output->columns[i].title);
	for (size_t i = 0; i < output->n_cells && i < output->n_columns; i++)
		if (output->columns[i].title)
			printf("%-*s  %s\n", (int)width, output->columns[i].title,
			       output->cells[i]);
}

void output_end_list(struct output *output)
{
	if (!output->is_json)
		print_list(output);
	else if (output_n_rows(output) > 0)
		print_object(output, 0);
	else
		printf("null");
	forget(output);
}
