/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Between the two files of the configuration: configuration.c reads the command
 * line, configuration_paths.c knows which paths of it can stand beside each
 * other and what the file system says about them.
 */

#include <string.h>
#include <sys/un.h>

#include "broker/configuration.h"

/* A guest may connect to any port, and the host path of the highest one must still fit. */
#define CONFIGURATION_SOCKET_LEN_MAX   (sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1)
#define CONFIGURATION_UDS_PATH_LEN_MAX (CONFIGURATION_SOCKET_LEN_MAX - strlen("_4294967295"))

/* What the operator typed, cut so that two of them leave room for the explanation. */
#define QUOTED "\"%.100s\""

/* Fill ret_error with one printable line; the code is returned. */
int configuration_fail(struct configuration_error *ret_error, int code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
int configuration_fail_memory(struct configuration_error *ret_error);

/* No CID twice, no path twice, no path that is a port of some uds-path; by spelling only. */
int configuration_check_clashes(const struct configuration *configuration,
				struct configuration_error *ret_error);
