/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/processes.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/configuration.h"
#include "broker/log.h"
#include "broker/spawner.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

uint32_t spawner_connections(const struct configuration *configuration)
{
	uint32_t most = 0;

	for (size_t i = 0; i < configuration->n_vms; i++) {
		if (configuration->vms[i].max_connections > most)
			most = configuration->vms[i].max_connections;
	}
	return most;
}

uint64_t spawner_files(const struct configuration *configuration)
{
	return (uint64_t)spawner_connections(configuration) + SPAWNER_WORKER_FILES;
}

int spawner_buffer_size(const struct configuration *configuration, uint64_t *ret_size)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t most = 0;

	for (size_t i = 0; i < configuration->n_vms; i++) {
		const struct vm_configuration *vm = &configuration->vms[i];
		uint64_t each = (uint64_t)vm->tx_buffer_size + SPAWNER_BUFFER_EXTRA;
		uint64_t size;

		if (__builtin_mul_overflow(each, vm->max_connections, &size))
			return -EOVERFLOW;
		if (size > most)
			most = size;
	}
	if (most > (uint64_t)INT64_MAX - SPAWNER_MESSAGE_EXTRA - page) /* off_t */
		return -EOVERFLOW;
	most += SPAWNER_MESSAGE_EXTRA;
	*ret_size = (most + page - 1) / page * page;
	return 0;
}

static uint32_t count_vms(const struct configuration *configuration)
{
	uint32_t n = 0;

	for (size_t i = 0; i < configuration->n_vms; i++)
		n += configuration->vms[i].guest_cid != 0;
	return n;
}

static uint32_t workers_of(size_t n_vms)
{
	return (uint32_t)n_vms * SPAWNER_WORKERS_PER_VM + SPAWNER_WORKERS_SPARE;
}

int processes_adapt(struct processes *workers, const struct configuration *configuration)
{
	int status = spawner_buffer_size(configuration, &workers->buffer_size);

	if (status)
		return status;
	/* Never fewer: those of VMs that have gone may still deliver. */
	if (workers_of(count_vms(configuration)) > workers->n_max)
		workers->n_max = workers_of(count_vms(configuration));
	(void)snprintf(workers->files, sizeof(workers->files), "--files=%" PRIu64,
		       spawner_files(configuration));
	(void)snprintf(workers->connections, sizeof(workers->connections), "--connections=%" PRIu32,
		       spawner_connections(configuration));
	(void)snprintf(workers->buffer, sizeof(workers->buffer), "--buffer=%" PRIu64,
		       workers->buffer_size);
	return 0;
}

int processes_init(struct processes *workers, const struct configuration *configuration,
		   size_t n_vms_max, int program)
{
	struct processes made = {
		.program = program,
		.insecure = configuration->insecure,
		.n_slots = workers_of(n_vms_max),
	};
	int status = processes_adapt(&made, configuration);

	if (status)
		return status;
	made.slots = calloc(made.n_slots, sizeof(*made.slots));
	if (!made.slots)
		return -ENOMEM;
	(void)snprintf(made.insecure_mask, sizeof(made.insecure_mask), "--insecure=%" PRIu32,
		       made.insecure);
	*workers = made;
	return 0;
}

/* NULL when as many live as may. */
static struct processes_slot *find_free(const struct processes *workers)
{
	struct processes_slot *free_slot = NULL;
	uint32_t n_live = 0;

	for (uint32_t i = 0; i < workers->n_slots; i++) {
		if (workers->slots[i].is_live)
			n_live++;
		else if (!free_slot)
			free_slot = &workers->slots[i];
	}
	return n_live < workers->n_max ? free_slot : NULL;
}

/*
 * Sealed before anybody else has it: neither a worker nor its successor, which
 * gets the same file at a handover, can be hurt by a change of size.
 */
static int make_buffer(uint64_t size)
{
	int fd = memfd_create("connections", MFD_CLOEXEC | MFD_NOEXEC_SEAL | MFD_ALLOW_SEALING);

	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create("connections", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
		int error = errno;

		close(fd);
		return -error;
	}
	return fd;
}

static int run_program(struct processes *workers, struct processes_slot *slot, int channel,
		       int buffer)
{
	char name[] = "vsockd-worker";
	char *const argv[] = {
		name, workers->files, workers->connections, workers->buffer, workers->insecure_mask,
		NULL};
	const struct policy_worker worker = {
		.insecure = workers->insecure,
		.slot = (uint32_t)(slot - workers->slots),
		.program = workers->program,
		.channel = channel,
		.buffer = buffer,
		.argv = argv,
	};
	struct policy_failure failure;
	int status = policy_clone(&worker, &slot->process, &failure);

	if (status)
		log_event(LOG_ERR, LOG_NO_VM, "%s", failure.text);
	return status;
}

int processes_start(struct processes *workers, int channel, struct processes_slot **ret_slot)
{
	struct processes_slot *slot = find_free(workers);
	int buffer, status;

	if (!slot)
		return -EAGAIN;
	buffer = make_buffer(workers->buffer_size);
	if (buffer < 0) {
		log_event(LOG_ERR, LOG_NO_VM,
			  "cannot make connection buffers of %" PRIu64 " bytes: %s",
			  workers->buffer_size, strerror(-buffer));
		return buffer;
	}
	status = run_program(workers, slot, channel, buffer);
	close(buffer);
	if (status)
		return status;
	slot->number = workers->next_number++;
	slot->is_live = true;
	*ret_slot = slot;
	return 0;
}

static void send_kill(const struct processes_slot *slot)
{
	if (syscall(SYS_pidfd_send_signal, slot->process.pidfd, SIGKILL, NULL, 0u) &&
	    errno != ESRCH)
		log_event(LOG_ERR, LOG_NO_VM, "cannot kill worker %" PRIu32 ": %s", slot->number,
			  strerror(errno));
}

void processes_kill(struct processes *workers, uint32_t number)
{
	for (uint32_t i = 0; i < workers->n_slots; i++) {
		if (workers->slots[i].is_live && workers->slots[i].number == number)
			send_kill(&workers->slots[i]);
	}
}

int processes_wait(int pidfd)
{
	siginfo_t info;

	while (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED)) {
		if (errno != EINTR)
			return -errno;
	}
	if (info.si_code == CLD_EXITED)
		return (info.si_status & 0xff) << 8;
	return info.si_status | (info.si_code == CLD_DUMPED ? 0x80 : 0);
}

int processes_reap(struct processes_slot *slot)
{
	int status = processes_wait(slot->process.pidfd);

	if (status < 0)
		return status;
	close(slot->process.pidfd); /* leaves every epoll set with it */
	slot->is_live = false;
	return status;
}

void processes_end(struct processes *workers)
{
	for (uint32_t i = 0; i < workers->n_slots; i++) {
		if (workers->slots[i].is_live)
			send_kill(&workers->slots[i]);
	}
	for (uint32_t i = 0; i < workers->n_slots; i++) {
		if (workers->slots[i].is_live)
			(void)processes_reap(&workers->slots[i]);
	}
	free(workers->slots);
	*workers = (struct processes){.n_slots = 0};
}
