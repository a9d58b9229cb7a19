/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The command line: the operator's, so nobody attacks here; but whatever stands there
 * ends in a configuration that holds together, or in one line that says what is wrong.
 * One argument a line.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <syslog.h>

#include "broker/configuration.h"
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

static void check_vm(const struct configuration *configuration, size_t index)
{
	const struct vm_configuration *vm = &configuration->vms[index];

	CLAIM((vm->socket != NULL) != (vm->socket_fd >= 0));
	CLAIM(vm->uds_path == NULL || *vm->uds_path != '\0');
	CLAIM(vm->n_groups > 0 && vm->n_groups <= CONFIGURATION_GROUPS_MAX);
	CLAIM(vm->tx_buffer_size > 0 && vm->max_connections > 0 && vm->max_handshakes > 0);
	CLAIM(vm->guest_cid > 2 && vm->guest_cid < UINT32_MAX);
	for (size_t i = 0; i < index; i++) {
		const struct vm_configuration *other = &configuration->vms[i];

		CLAIM(vm->guest_cid != other->guest_cid);
		CLAIM(!vm->socket || !other->socket || strcmp(vm->socket, other->socket) != 0);
		CLAIM(vm->socket_fd < 0 || vm->socket_fd != other->socket_fd);
	}
}

static void check(const struct configuration *configuration)
{
	if (configuration->action != CONFIGURATION_RUN) {
		CLAIM(configuration->n_vms == 0);
		return;
	}
	CLAIM(configuration->n_vms > 0 && configuration->n_vms <= CONFIGURATION_VMS_MAX);
	CLAIM(configuration->log_level >= LOG_ERR && configuration->log_level <= LOG_DEBUG);
	CLAIM(configuration_n_files(configuration) > configuration->n_vms);
	for (size_t i = 0; i < configuration->n_vms; i++)
		check_vm(configuration, i);
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
	if (status != 0) {
		CLAIM(status >= EX__BASE && status <= EX__MAX);
		CLAIM(error.text[0] != '\0' && strlen(error.text) < sizeof(error.text));
		CLAIM(!strchr(error.text, '\n'));
		return 0;
	}
	check(&configuration);
	configuration_free(&configuration);
	return 0;
}
