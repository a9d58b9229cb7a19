/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "ctl/names.h"
#include "ctl/output.h"

static const struct output_column columns[] = {
	{"name", "NAME", OUTPUT_TEXT},	 {"n", "N", OUTPUT_NUMBER},  {"age", "AGE", OUTPUT_AGE},
	{"bytes", "SIZE", OUTPUT_BYTES}, {"bits", NULL, OUTPUT_HEX}, {NULL, "WHY", OUTPUT_TEXT},
};

static void add_row(struct output *output, const char *name, uint64_t number, const char *why)
{
	output_text(output, name);
	output_number(output, number);
	output_number(output, number);
	output_number(output, number);
	output_number(output, number);
	output_text(output, why);
}

/* What is printed, which goes to stdout: a file instead, for the time of the call. */
static void print(bool is_json, char *ret_text, size_t size)
{
	struct output output;
	FILE *file = tmpfile();
	int saved = dup(STDOUT_FILENO);
	size_t n;

	assert_non_null(file);
	fflush(stdout);
	dup2(fileno(file), STDOUT_FILENO);
	output_begin(&output, is_json, columns, sizeof(columns) / sizeof(columns[0]));
	add_row(&output, "a", 192500, "x");
	add_row(&output, "long \"name\"\\\n", OUTPUT_NONE, "-");
	assert_int_equal(output_n_rows(&output), 2);
	output_end(&output);
	fflush(stdout);
	dup2(saved, STDOUT_FILENO);
	close(saved);
	rewind(file);
	n = fread(ret_text, 1, size - 1, file);
	ret_text[n] = '\0';
	fclose(file);
}

static void test_a_table_is_aligned(void **state)
{
	char text[1024];

	(void)state;
	print(false, text, sizeof(text));
	assert_string_equal(text, "NAME                N    AGE    SIZE  WHY\n"
				  "a              192500  3m12s  188.0K  x\n"
				  "long \"name\"\\\n       -      -       -  -\n");
}

static void test_json_is_escaped_and_has_its_own_columns(void **state)
{
	char text[1024];

	(void)state;
	print(true, text, sizeof(text));
	assert_string_equal(text, "[\n"
				  "  {\"name\": \"a\", \"n\": 192500, \"age\": 192.500, "
				  "\"bytes\": 192500, \"bits\": \"0x2eff4\"},\n"
				  "  {\"name\": \"long \\\"name\\\"\\\\?\", \"n\": null, "
				  "\"age\": null, \"bytes\": null, \"bits\": null}\n"
				  "]\n");
}

static void test_numbers_for_people(void **state)
{
	char text[OUTPUT_HUMAN_MAX];

	(void)state;
	assert_string_equal(output_age(0, text), "0s");
	assert_string_equal(output_age(59999, text), "59s");
	assert_string_equal(output_age(3600000, text), "1h00m");
	assert_string_equal(output_age(90000000, text), "1d01h");
	assert_string_equal(output_bytes(1023, text), "1023");
	assert_string_equal(output_bytes(1536, text), "1.5K");
	assert_string_equal(output_bytes(UINT64_MAX, text), "16.0E");
}

static void test_bits_have_names(void **state)
{
	char text[NAMES_MAX];

	(void)state;
	assert_string_equal(names_features(0, text), "-");
	assert_string_equal(names_features(UINT64_C(1) << 29 | UINT64_C(1) << 32, text),
			    "event-idx,version-1");
	assert_string_equal(names_features(UINT64_C(1) << 63, text), "bit-63");
	names_features(UINT64_MAX, text);
	names_protocol_features(UINT64_MAX, text);
	assert_true(strlen(text) < NAMES_MAX);
	assert_string_equal(names_protocol_features(3, text), "mq,log-shmfd");
	assert_string_equal(names_state(99), "?");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_table_is_aligned),
		cmocka_unit_test(test_json_is_escaped_and_has_its_own_columns),
		cmocka_unit_test(test_numbers_for_people),
		cmocka_unit_test(test_bits_have_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
