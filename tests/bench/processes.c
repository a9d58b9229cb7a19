/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/bench/processes.h"

#include <dirent.h>
#include <errno.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Where tracefs is by custom; nobody but root may look. */
#define TRACEPOINT_ID "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id"

static size_t list_threads(pid_t pid, pid_t *ret_tids, size_t n_max)
{
	char path[64];
	struct dirent *entry;
	size_t n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && n < n_max && (entry = readdir(dir))) {
		if (entry->d_name[0] != '.')
			ret_tids[n++] = atoi(entry->d_name);
	}
	if (dir)
		closedir(dir);
	return n;
}

/* The whole tree, each process before its children. */
static size_t list_processes(pid_t root, pid_t ret_pids[PROCESSES_MAX])
{
	size_t n = 1;

	ret_pids[0] = root;
	for (size_t i = 0; i < n; i++) {
		pid_t tids[PROCESSES_MAX];
		size_t n_tids = list_threads(ret_pids[i], tids, PROCESSES_MAX);

		for (size_t k = 0; k < n_tids; k++) {
			char path[96];
			FILE *file;

			snprintf(path, sizeof(path), "/proc/%d/task/%d/children", ret_pids[i],
				 tids[k]);
			file = fopen(path, "r");
			while (file && n < PROCESSES_MAX && fscanf(file, "%d", &ret_pids[n]) == 1)
				n++;
			if (file)
				fclose(file);
		}
	}
	return n;
}

static size_t list_all_threads(pid_t root, pid_t ret_tids[PROCESSES_MAX])
{
	pid_t pids[PROCESSES_MAX];
	size_t n_pids = list_processes(root, pids), n = 0;

	for (size_t i = 0; i < n_pids; i++)
		n += list_threads(pids[i], ret_tids + n, PROCESSES_MAX - n);
	return n;
}

/* The number behind "key:" in a file of /proc, 0 if it is not there. */
static uint64_t read_value(const char *path, const char *key)
{
	FILE *file = fopen(path, "r");
	size_t len = strlen(key);
	uint64_t value = 0;
	char line[256];

	while (file && fgets(line, sizeof(line), file)) {
		if (strncmp(line, key, len) != 0 || line[len] != ':')
			continue;
		value = strtoull(line + len + 1, NULL, 10);
		break;
	}
	if (file)
		fclose(file);
	return value;
}

void processes_usage(pid_t root, struct processes_usage *ret)
{
	pid_t tids[PROCESSES_MAX];
	size_t n = list_all_threads(root, tids);

	*ret = (struct processes_usage){0};
	for (size_t i = 0; i < n; i++) {
		unsigned long long ran = 0;
		char path[64];
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%d/schedstat", tids[i]);
		file = fopen(path, "r");
		if (file && fscanf(file, "%llu", &ran) == 1)
			ret->cpu_seconds += (double)ran / 1e9;
		if (file)
			fclose(file);
		snprintf(path, sizeof(path), "/proc/%d/status", tids[i]);
		ret->n_switches += read_value(path, "voluntary_ctxt_switches");
	}
}

static double seconds_of(const struct rusage *usage)
{
	return (double)(usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) +
	       (double)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec) / 1e6;
}

double processes_own_cpu(void)
{
	struct rusage self;

	getrusage(RUSAGE_SELF, &self);
	return seconds_of(&self);
}

void processes_machine(struct processes_machine *ret)
{
	FILE *file = fopen("/proc/stat", "r");
	unsigned long long user = 0, nice = 0, kernel = 0;
	struct rusage self, children;

	/* Descendants count from the moment that they were waited for. */
	getrusage(RUSAGE_SELF, &self);
	getrusage(RUSAGE_CHILDREN, &children);
	ret->own = seconds_of(&self) + seconds_of(&children);
	if (file && fscanf(file, "cpu %llu %llu %llu", &user, &nice, &kernel) != 3)
		user = nice = kernel = 0;
	if (file)
		fclose(file);
	ret->all = (double)(user + nice + kernel) / (double)sysconf(_SC_CLK_TCK);
}

static void add_memory(pid_t pid, struct processes_memory *memory)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	memory->resident += 1024 * read_value(path, "VmRSS");
	memory->peak_resident += 1024 * read_value(path, "VmHWM");
	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	memory->pss += 1024 * read_value(path, "Pss");
	memory->private +=
		1024 * (read_value(path, "Private_Clean") + read_value(path, "Private_Dirty"));
}

void processes_memory(pid_t root, struct processes_memory *ret)
{
	pid_t pids[PROCESSES_MAX];
	size_t n = list_processes(root, pids);

	*ret = (struct processes_memory){0};
	for (size_t i = 0; i < n; i++)
		add_memory(pids[i], ret);
}

bool processes_memory_of(pid_t root, const char *name, struct processes_memory *ret)
{
	struct processes_memory found = {0};
	pid_t pids[PROCESSES_MAX];
	size_t n = list_processes(root, pids);
	bool is_found = false;

	for (size_t i = 0; i < n; i++) {
		struct processes_memory memory = {0};
		char path[64], comm[32] = "";
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%d/comm", pids[i]);
		file = fopen(path, "r");
		if (file && !fgets(comm, sizeof(comm), file))
			comm[0] = '\0';
		if (file)
			fclose(file);
		if (strncmp(comm, name, strlen(name)) != 0)
			continue;
		add_memory(pids[i], &memory);
		if (!is_found || memory.resident > found.resident)
			found = memory;
		is_found = true;
	}
	if (is_found)
		*ret = found;
	return is_found;
}

static int read_tracepoint(uint64_t *ret_id)
{
	FILE *file = fopen(TRACEPOINT_ID, "r");
	unsigned long id;
	int n;

	if (!file)
		return -errno;
	n = fscanf(file, "%lu", &id);
	fclose(file);
	if (n != 1)
		return -EIO;
	*ret_id = id;
	return 0;
}

int processes_calls_start(pid_t root, struct processes_calls *ret)
{
	struct perf_event_attr attributes = {.type = PERF_TYPE_TRACEPOINT,
					     .size = sizeof(attributes)};
	pid_t tids[PROCESSES_MAX];
	size_t n = list_all_threads(root, tids);
	uint64_t id = 0;
	int error = read_tracepoint(&id);

	if (error)
		return error;
	attributes.config = id;
	ret->n_fds = 0;
	for (size_t i = 0; i < n; i++) {
		int fd = (int)syscall(SYS_perf_event_open, &attributes, tids[i], -1, -1,
				      PERF_FLAG_FD_CLOEXEC);

		if (fd < 0) {
			error = -errno;
			processes_calls_end(ret);
			return error;
		}
		ret->fds[ret->n_fds++] = fd;
	}
	return 0;
}

uint64_t processes_calls_read(const struct processes_calls *calls)
{
	uint64_t sum = 0, value;

	for (size_t i = 0; i < calls->n_fds; i++) {
		if (read(calls->fds[i], &value, sizeof(value)) == sizeof(value))
			sum += value;
	}
	return sum;
}

void processes_calls_end(struct processes_calls *calls)
{
	while (calls->n_fds > 0)
		close(calls->fds[--calls->n_fds]);
}

const char *processes_calls_reason(int error)
{
	switch (error) {
	case -ENOENT:
		return "no tracefs at /sys/kernel/tracing (mount -t tracefs tracefs "
		       "/sys/kernel/tracing)";
	case -EACCES:
	case -EPERM:
		return "needs root, or kernel.perf_event_paranoid below 2 and a readable tracefs";
	default:
		return strerror(-error);
	}
}
