/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/processes.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/configuration.h"
#include "broker/log.h"
#include "broker/memory_file.h"
#include "broker/spawner.h"

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
		   size_t n_vms_max, int program, const char *path)
{
	struct processes made = {
		.program = program,
		.path = path,
		.insecure = configuration->insecure,
		.n_slots = workers_of(n_vms_max),
	};
	int status = processes_adapt(&made, configuration);

	if (status)
		return status;
	if (fstat(program, &made.first))
		return -errno;
	made.last = made.first;
	made.slots = calloc(made.n_slots, sizeof(*made.slots));
	if (!made.slots)
		return -ENOMEM;
	for (uint32_t i = 0; i < made.n_slots; i++)
		made.slots[i].buffer = -1;
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

static int run_program(struct processes *workers, struct processes_slot *slot, int program,
		       int channel, int buffer)
{
	char name[] = "vsockd-worker";
	char *const argv[] = {
		name, workers->files, workers->connections, workers->buffer, workers->insecure_mask,
		NULL};
	const struct policy_worker worker = {
		.insecure = workers->insecure,
		.slot = (uint32_t)(slot - workers->slots),
		.program = program,
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

static bool is_same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* Said once, until it has worked again. */
static void say_failing(struct processes *workers, int error)
{
	if (!workers->is_failing)
		log_event(LOG_WARNING, LOG_NO_VM,
			  "cannot start a worker from %s: %s; the program that vsockd found there "
			  "when it was started is used",
			  workers->path, strerror(error));
	workers->is_failing = true;
}

enum { RUN_E_AS_AT_FIRST = 1 };

/*
 * Under this process's own user, whatever root was when vsockd was started: a path
 * that only root can follow leads nowhere here, see vsockd(8). What can't be run
 * although it has not changed can't be run from the fd of then either.
 */
static int run_from_path(struct processes *workers, struct processes_slot *slot, int channel,
			 int buffer)
{
	struct stat found = {0};
	int program = open(workers->path, O_PATH | O_CLOEXEC);
	int status = program < 0 || fstat(program, &found) ? -errno : 0;
	bool is_first = status == 0 && is_same_file(&found, &workers->first);

	if (status == 0)
		status = run_program(workers, slot, program, channel, buffer);
	if (program >= 0)
		close(program);
	if (status && !is_first) {
		say_failing(workers, -status);
		return RUN_E_AS_AT_FIRST;
	}
	if (status)
		return status;
	if (!is_same_file(&found, &workers->last))
		workers->n_programs++;
	workers->last = found;
	workers->is_failing = false;
	slot->program = workers->n_programs;
	return 0;
}

int processes_start(struct processes *workers, int channel, bool is_first,
		    struct processes_slot **ret_slot)
{
	struct processes_slot *slot = find_free(workers);
	int buffer, status = RUN_E_AS_AT_FIRST;

	if (!slot)
		return -EAGAIN;
	buffer = memory_file_make("connections", workers->buffer_size);
	if (buffer < 0) {
		log_event(LOG_ERR, LOG_NO_VM,
			  "cannot make connection buffers of %" PRIu64 " bytes: %s",
			  workers->buffer_size, strerror(-buffer));
		return buffer;
	}
	slot->program = 0;
	if (workers->path && !is_first)
		status = run_from_path(workers, slot, channel, buffer);
	if (status == RUN_E_AS_AT_FIRST)
		status = run_program(workers, slot, workers->program, channel, buffer);
	if (status) {
		close(buffer);
		return status;
	}
	slot->buffer = buffer;
	slot->number = workers->next_number++;
	slot->is_live = true;
	*ret_slot = slot;
	return 0;
}

void processes_forget_buffer(struct processes_slot *slot)
{
	if (slot->buffer >= 0)
		close(slot->buffer);
	slot->buffer = -1;
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
	processes_forget_buffer(slot);
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
