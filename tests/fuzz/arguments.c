/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The command line: the operator's, so nobody attacks here; but whatever stands there
 * ends in a configuration that holds together, or in one line that says what is wrong.
 * One argument a line.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/configured.h"
#include "tests/fuzz/fuzz.h"

#define LEN_MAX	      4096
#define ARGUMENTS_MAX 64

static int split(char *text, char **ret_argv)
{
	int argc = 0;

	for (char *line = text; line && argc < ARGUMENTS_MAX; argc++) {
		char *end = strchr(line, '\n');

		if (end)
			*end++ = '\0';
		ret_argv[argc] = line;
		line = end;
	}
	ret_argv[argc] = NULL;
	return argc;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct configuration configuration;
	struct configuration_error error = {.text = ""};
	char *argv[ARGUMENTS_MAX + 2] = {(char[]){"vsockd"}};
	char text[LEN_MAX + 1];
	int status;

	if (len > LEN_MAX)
		return -1;
	if (len > 0)
		memcpy(text, bytes, len);
	text[len] = '\0';
	status = configuration_parse(1 + split(text, argv + 1), argv, &configuration, &error);
	check_configured(status, &configuration, &error);
	return 0;
}
