/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/frontend/daemon.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/frontend/socket.h"

#define LOG "log"

static int open_pidfd(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	return fd < 0 ? -errno : fd;
}

const char *daemon_path(struct daemon *daemon, const char *name)
{
	char *path = daemon->paths[daemon->n_paths++ % DAEMON_PATHS];

	snprintf(path, sizeof(daemon->paths[0]), "%s/%s", daemon->directory, name);
	return path;
}

int daemon_prepare(struct daemon *daemon)
{
	const char *base = getenv("TMPDIR");

	*daemon = (struct daemon){.pidfd = -1};
	/* Unix socket paths are short: a long TMPDIR is of no use. */
	if (!base || strlen(base) > 32)
		base = "/tmp";
	snprintf(daemon->directory, sizeof(daemon->directory), "%s/vsockd-XXXXXX", base);
	return mkdtemp(daemon->directory) ? 0 : -errno;
}

/* argument with each "@" replaced. NULL if it does not fit. */
static char *expand(const char *argument, const char *directory)
{
	char expanded[1024];
	size_t len = 0;

	for (; *argument; argument++) {
		size_t n = *argument == '@' ? strlen(directory) : 1;

		if (len + n >= sizeof(expanded))
			return NULL;
		memcpy(expanded + len, *argument == '@' ? directory : argument, n);
		len += n;
	}
	expanded[len] = '\0';
	return strdup(expanded);
}

static void number_into(const char *name, long number)
{
	char text[24];

	snprintf(text, sizeof(text), "%ld", number);
	setenv(name, text, 1);
}

/* Fds and environment as systemd.exec(5) has them. */
static void serve(const struct daemon_service *service)
{
	int first = STDERR_FILENO + 1, aside[DAEMON_ARGUMENTS_MAX];

	setenv("NOTIFY_SOCKET", service->notify, 1);
	if (service->watchdog) {
		setenv("WATCHDOG_USEC", service->watchdog, 1);
		number_into("WATCHDOG_PID", getpid());
	}
	for (size_t i = 0; i < service->n_fds; i++)
		aside[i] = fcntl(service->fds[i], F_DUPFD, 2 * DAEMON_ARGUMENTS_MAX);
	for (size_t i = 0; i < service->n_fds; i++)
		dup2(aside[i], first + (int)i);
	if (service->n_fds > 0) {
		number_into("LISTEN_PID", getpid());
		number_into("LISTEN_FDS", (long)service->n_fds);
		setenv("LISTEN_FDNAMES", service->names, 1);
	}
	closefrom(first + (int)service->n_fds);
}

static void run(char *const *arguments, int log, pid_t parent, const struct daemon_service *service)
{
	int null = open("/dev/null", O_RDWR);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent || null < 0)
		_exit(127);
	dup2(null, STDIN_FILENO);
	dup2(log, STDOUT_FILENO);
	dup2(log, STDERR_FILENO);
	/* As a service manager starts it: the test's fds are no part of the daemon. */
	if (service)
		serve(service);
	else
		closefrom(STDERR_FILENO + 1);
	execvp(arguments[0], arguments);
	perror(arguments[0]);
	_exit(127);
}

static void show_log(struct daemon *daemon)
{
	FILE *log = fopen(daemon_path(daemon, LOG), "r");
	char line[512];

	while (log && fgets(line, sizeof(line), log))
		fprintf(stderr, "| %s", line);
	if (log)
		fclose(log);
}

static int spawn(struct daemon *daemon, const char *const *arguments)
{
	char *expanded[DAEMON_ARGUMENTS_MAX + 1] = {0};
	int log = open(daemon_path(daemon, LOG), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	const char *program = arguments[0][0] ? arguments[0] : getenv("VSOCKD");
	pid_t parent = getpid();
	int error = program && log >= 0 ? 0 : -ENOENT;

	for (size_t i = 0; !error && arguments[i]; i++) {
		if (i == DAEMON_ARGUMENTS_MAX)
			error = -E2BIG;
		else
			expanded[i] = expand(i == 0 ? program : arguments[i], daemon->directory);
		if (!error && !expanded[i])
			error = -ENOMEM;
	}
	if (!error) {
		daemon->pid = fork();
		if (daemon->pid == 0)
			run(expanded, log, parent, daemon->service);
		error = daemon->pid < 0 ? -errno : 0;
	}
	for (size_t i = 0; i < DAEMON_ARGUMENTS_MAX; i++)
		free(expanded[i]);
	if (log >= 0)
		close(log);
	if (error)
		return error;
	daemon->pidfd = open_pidfd(daemon->pid);
	return daemon->pidfd < 0 ? daemon->pidfd : 0;
}

int daemon_start(struct daemon *daemon, const char *const *arguments, const char *socket,
		 int timeout)
{
	int error = 0;

	if (!daemon->directory[0])
		error = daemon_prepare(daemon);
	if (!error)
		error = spawn(daemon, arguments);
	if (!error && socket)
		error = socket_wait_path(daemon_path(daemon, socket), daemon->pidfd, timeout);
	if (error)
		daemon_stop(daemon, timeout);
	return error;
}

static void remove_directory(const char *directory)
{
	DIR *dir = opendir(directory);
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		if (unlinkat(dirfd(dir), entry->d_name, 0) < 0 && errno == EISDIR)
			unlinkat(dirfd(dir), entry->d_name, AT_REMOVEDIR);
	}
	if (dir)
		closedir(dir);
	rmdir(directory);
}

static int wait_exit(struct daemon *daemon, int timeout)
{
	bool is_late;
	int status;

	if (daemon->pid <= 0)
		return 0;
	kill(daemon->pid, SIGTERM);
	is_late = socket_wait(daemon->pidfd, POLLIN, deadline_in(timeout)) < 0;
	if (is_late)
		kill(daemon->pid, SIGKILL);
	if (waitpid(daemon->pid, &status, 0) < 0)
		return -errno;
	if (is_late)
		return -ETIMEDOUT;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int daemon_end(struct daemon *daemon, int timeout)
{
	int result = wait_exit(daemon, timeout);

	if (daemon->pid > 0 && daemon->pidfd >= 0)
		close(daemon->pidfd);
	daemon->pid = 0;
	daemon->pidfd = -1;
	return result;
}

int daemon_stop(struct daemon *daemon, int timeout)
{
	int result = wait_exit(daemon, timeout);

	if (result == 0 &&
	    (daemon_log_has(daemon, "Sanitizer") || daemon_log_has(daemon, "runtime error:")))
		result = -EBADMSG;
	if (result != 0)
		show_log(daemon);
	if (daemon->pid > 0 && daemon->pidfd >= 0)
		close(daemon->pidfd);
	if (daemon->directory[0])
		remove_directory(daemon->directory);
	*daemon = (struct daemon){.pidfd = -1};
	return result;
}

size_t daemon_count_log(struct daemon *daemon, const char *text)
{
	FILE *log = fopen(daemon_path(daemon, LOG), "r");
	char *line = NULL;
	size_t size = 0, n = 0;

	while (log && getline(&line, &size, log) >= 0)
		n += strstr(line, text) != NULL;
	free(line);
	if (log)
		fclose(log);
	return n;
}

bool daemon_log_has(struct daemon *daemon, const char *text)
{
	return daemon_count_log(daemon, text) > 0;
}

int daemon_wait_log_times(struct daemon *daemon, const char *text, size_t n, int timeout)
{
	int64_t deadline = deadline_in(timeout);
	int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	int error = 0;

	if (fd < 0)
		return -errno;
	if (inotify_add_watch(fd, daemon_path(daemon, LOG), IN_MODIFY) < 0)
		error = -errno;
	while (!error && daemon_count_log(daemon, text) < n) {
		char events[4096];

		error = socket_wait(fd, POLLIN, deadline);
		if (!error && read(fd, events, sizeof(events)) < 0)
			error = -errno;
	}
	close(fd);
	return error;
}

int daemon_wait_log(struct daemon *daemon, const char *text, int timeout)
{
	return daemon_wait_log_times(daemon, text, 1, timeout);
}

static void add_children(pid_t pid, pid_t *pids, size_t *n_pids)
{
	char path[64];
	DIR *dir;
	struct dirent *entry;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		char children[352];
		FILE *file;
		int child;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(children, sizeof(children), "%s/%s/children", path, entry->d_name);
		file = fopen(children, "r");
		while (file && *n_pids < DAEMON_PIDS_MAX && fscanf(file, "%d", &child) == 1)
			pids[(*n_pids)++] = child;
		if (file)
			fclose(file);
	}
	if (dir)
		closedir(dir);
}

size_t daemon_pids(const struct daemon *daemon, pid_t *ret_pids)
{
	size_t n = 1;

	ret_pids[0] = daemon->pid;
	for (size_t i = 0; i < n; i++)
		add_children(ret_pids[i], ret_pids, &n);
	return n;
}

char daemon_process_state(pid_t pid)
{
	char path[64], state = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "r");
	if (!file)
		return 0;
	if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
		state = 0; /* it ended meanwhile */
	fclose(file);
	return state;
}

/* How often it has given up a processor, or lost it. */
static uint64_t count_switches(pid_t pid)
{
	char path[64], line[128];
	uint64_t n = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	file = fopen(path, "r");
	while (file && fgets(line, sizeof(line), file)) {
		const char *value = strstr(line, "ctxt_switches:");

		n += value ? strtoull(value + strlen("ctxt_switches:"), NULL, 10) : 0;
	}
	if (file)
		fclose(file);
	return n;
}

/* One after the other, and each of them says how often it has run. */
static bool are_asleep(const struct daemon *daemon, uint64_t *ret_n_switches)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n = daemon_pids(daemon, pids);
	uint64_t n_switches = n;

	for (size_t i = 0; i < n; i++) {
		if (daemon_process_state(pids[i]) != 'S')
			return false;
		n_switches += count_switches(pids[i]);
	}
	*ret_n_switches = n_switches;
	return true;
}

/* Who was looked at first may be woken by who is looked at last. */
bool daemon_is_asleep(const struct daemon *daemon)
{
	uint64_t before, after;

	return are_asleep(daemon, &before) && are_asleep(daemon, &after) && before == after;
}

size_t daemon_find(const struct daemon *daemon, const char *name, pid_t *ret_pids)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n = daemon_pids(daemon, pids), n_found = 0;

	for (size_t i = 1; i < n; i++) {
		char path[64], comm[32] = "";
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%d/comm", pids[i]);
		file = fopen(path, "r");
		if (file && fgets(comm, sizeof(comm), file) &&
		    strncmp(comm, name, strlen(name)) == 0)
			ret_pids[n_found++] = pids[i];
		if (file)
			fclose(file);
	}
	return n_found;
}

int daemon_count_fds_of(pid_t pid)
{
	char path[64];
	struct dirent *entry;
	DIR *directory;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	directory = opendir(path);
	if (!directory)
		return -errno;
	while ((entry = readdir(directory)))
		n += entry->d_name[0] != '.';
	closedir(directory);
	return n;
}

int daemon_count_fds(const struct daemon *daemon)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n = daemon_pids(daemon, pids);
	int n_fds = 0;

	for (size_t i = 0; i < n; i++) {
		int n_of_one = daemon_count_fds_of(pids[i]);

		/* It has gone meanwhile, and its fds with it. */
		if (n_of_one == -ENOENT)
			continue;
		if (n_of_one < 0)
			return n_of_one;
		n_fds += n_of_one;
	}
	return n_fds;
}

int64_t daemon_resident(const struct daemon *daemon)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n = daemon_pids(daemon, pids);
	int64_t n_pages = 0;

	for (size_t i = 0; i < n; i++) {
		char path[64];
		FILE *file;
		long resident = -1;

		snprintf(path, sizeof(path), "/proc/%d/statm", pids[i]);
		file = fopen(path, "r");
		if (file && fscanf(file, "%*d %ld", &resident) != 1)
			resident = -1;
		if (file)
			fclose(file);
		if (resident < 0)
			return -ESRCH;
		n_pages += resident;
	}
	return n_pages * sysconf(_SC_PAGESIZE);
}

int daemon_kill(pid_t pid, int timeout)
{
	int fd = open_pidfd(pid);
	int error;

	if (fd < 0)
		return fd;
	error = kill(pid, SIGKILL) < 0 ? -errno : 0;
	if (!error)
		error = socket_wait(fd, POLLIN, deadline_in(timeout));
	close(fd);
	return error;
}
