/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The configuration file. As with the command line nobody attacks here; but a file that
 * was cut off, or is another one, is refused in one line and not taken for something else.
 */

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/configured.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct configuration configuration;
	struct configuration_error error = {.text = ""};
	size_t n_fds = fuzz_count_fds();
	int fd = memfd_create("vsockd.yaml", MFD_CLOEXEC);
	char option[64], program[] = "vsockd";
	char *argv[] = {program, option, NULL};
	int status;

	if (fd < 0 || (len > 0 && write(fd, bytes, len) != (ssize_t)len))
		abort();
	snprintf(option, sizeof(option), "--config=/proc/self/fd/%d", fd);
	status = configuration_parse(2, argv, &configuration, &error);
	check_configured(status, &configuration, &error);
	close(fd);
	CLAIM(fuzz_count_fds() == n_fds);
	return 0;
}
