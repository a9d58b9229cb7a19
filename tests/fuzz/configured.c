/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/configured.h"

#include <string.h>
#include <sysexits.h>
#include <syslog.h>

#include "tests/fuzz/fuzz.h"

static void check_vm(const struct configuration *configuration, size_t index)
{
	const struct vm_configuration *vm = &configuration->vms[index];

	CLAIM((vm->socket != NULL) != (vm->socket_fd >= 0));
	CLAIM(vm->uds_path == NULL || *vm->uds_path != '\0');
	CLAIM(vm->n_groups > 0 && vm->n_groups <= CONFIGURATION_GROUPS_MAX);
	CLAIM(vm->n_connects <= CONFIGURATION_RULES_MAX &&
	      vm->n_listens <= CONFIGURATION_RULES_MAX);
	CLAIM(vm->max_connections <= CONFIGURATION_CONNECTIONS_MAX);
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
	if (configuration->action != CONFIGURATION_RUN &&
	    configuration->action != CONFIGURATION_CHECK) {
		CLAIM(configuration->n_vms == 0);
		return;
	}
	CLAIM(configuration->n_vms > 0 && configuration->n_vms <= CONFIGURATION_VMS_MAX);
	CLAIM(configuration->log_level >= LOG_ERR && configuration->log_level <= LOG_DEBUG);
	CLAIM(configuration_n_files(configuration) > configuration->n_vms);
	for (size_t i = 0; i < configuration->n_vms; i++)
		check_vm(configuration, i);
}

void check_configured(int status, struct configuration *configuration,
		      const struct configuration_error *error)
{
	if (status != 0) {
		CLAIM(status >= EX__BASE && status <= EX__MAX);
		CLAIM(error->text[0] != '\0' && strlen(error->text) < sizeof(error->text));
		CLAIM(!strchr(error->text, '\n'));
		return;
	}
	check(configuration);
	configuration_free(configuration);
}
