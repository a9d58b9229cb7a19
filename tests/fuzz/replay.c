/* SPDX-License-Identifier: Apache-2.0 */

/*
 * In place of libFuzzer: run a target over files, and over all files of directories,
 * in the order of their names. What once went wrong is so a test for any compiler.
 *
 *	replay-TARGET PATH...
 */

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"

#define FILE_MAX (1u << 20)

#pragma weak LLVMFuzzerInitialize

static size_t n_run;

static int fail(const char *path)
{
	perror(path);
	return EXIT_FAILURE;
}

static int run_file(const char *path)
{
	FILE *file = fopen(path, "rb");
	uint8_t *bytes, *exact;
	size_t len;

	if (!file)
		return fail(path);
	bytes = malloc(FILE_MAX);
	if (!bytes)
		abort();
	len = fread(bytes, 1, FILE_MAX, file);
	fclose(file);
	/* No byte more than there is, so that a sanitizer sees who reads beyond. */
	exact = realloc(bytes, len > 0 ? len : 1);
	if (!exact)
		abort();
	fprintf(stderr, "%s\n", path);
	LLVMFuzzerTestOneInput(exact, len);
	n_run++;
	free(exact);
	return EXIT_SUCCESS;
}

static int is_visible(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

static int run_directory(const char *path)
{
	struct dirent **entries;
	int n = scandir(path, &entries, is_visible, alphasort);
	int status = n < 0 ? fail(path) : EXIT_SUCCESS;

	for (int i = 0; i < n; i++) {
		char name[4096];

		snprintf(name, sizeof(name), "%s/%s", path, entries[i]->d_name);
		if (run_file(name) != EXIT_SUCCESS)
			status = EXIT_FAILURE;
		free(entries[i]);
	}
	if (n >= 0)
		free(entries);
	return status;
}

int main(int argc, char **argv)
{
	int status = EXIT_SUCCESS;

	if (LLVMFuzzerInitialize)
		LLVMFuzzerInitialize(&argc, &argv);
	LLVMFuzzerTestOneInput(NULL, 0);
	for (int i = 1; i < argc; i++) {
		struct stat stat_of;

		if (stat(argv[i], &stat_of) < 0)
			status = fail(argv[i]);
		else if ((S_ISDIR(stat_of.st_mode) ? run_directory : run_file)(argv[i]) !=
			 EXIT_SUCCESS)
			status = EXIT_FAILURE;
	}
	fprintf(stderr, "%zu inputs\n", n_run);
	return status;
}
