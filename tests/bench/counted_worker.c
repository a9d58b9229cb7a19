/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Stands in for vsockd-worker when instructions are counted: becomes valgrind,
 * which runs the worker and writes its count into the pipe beside this program.
 * Whoever starts workers gives them no environment, so all is found from here.
 */

#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#define ARGUMENTS_MAX 16

/* What valgrind keeps for itself; it lets nobody change the limit that remains. */
#define VALGRIND_FILES 12

/* The worker insists on a limit, which is its first argument: let it be the one that it finds. */
static int limit_files(const char *argument)
{
	struct rlimit limit;
	unsigned long n;

	if (!argument || sscanf(argument, "--files=%lu", &n) != 1)
		return -1;
	limit.rlim_cur = limit.rlim_max = n + VALGRIND_FILES;
	return setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
	char self[PATH_MAX - 64], pipe_path[PATH_MAX], worker[PATH_MAX], log[32];
	char *arguments[ARGUMENTS_MAX + 8] = {
		"valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", log, worker,
	};
	ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
	size_t n = 5;
	int fd;

	if (len < 0)
		return 127;
	self[len] = '\0';
	snprintf(pipe_path, sizeof(pipe_path), "%s.pipe", self);
	snprintf(worker, sizeof(worker), "%s/../../worker/vsockd-worker", dirname(self));
	/* A worker may write to no file, but a pipe is none. */
	fd = open(pipe_path, O_WRONLY);
	if (fd < 0 || limit_files(argv[1]) < 0)
		return 127;
	snprintf(log, sizeof(log), "--log-fd=%d", fd);
	for (int i = 1; i < argc && i < ARGUMENTS_MAX; i++)
		arguments[n++] = argv[i];
	execv("/usr/bin/valgrind", arguments);
	return 127;
}
