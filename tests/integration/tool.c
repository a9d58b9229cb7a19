/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/integration/tool.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define TOOL_ARGUMENTS_MAX 16

static void execute(const char *path, const char *const *arguments, const int *ends, pid_t parent)
{
	const char *all[TOOL_ARGUMENTS_MAX + 2] = {getenv("VSOCKCTL")};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (size_t i = 0; i < TOOL_ARGUMENTS_MAX && arguments[i]; i++)
		all[i + 1] = arguments[i];
	for (int i = 0; i < 3; i++)
		dup2(ends[i], i);
	closefrom(STDERR_FILENO + 1);
	if (path)
		setenv("VSOCKD_CONTROL", path, 1);
	else
		unsetenv("VSOCKD_CONTROL");
	if (getppid() == parent && all[0])
		execv(all[0], (char *const *)(uintptr_t)all);
	_exit(127);
}

void tool_start(struct tool *tool, const char *path, const char *const *arguments)
{
	int input[2], output[2], error[2];
	pid_t parent = getpid();

	*tool = (struct tool){0};
	assert_int_equal(pipe2(input, O_CLOEXEC), 0);
	assert_int_equal(pipe2(output, O_CLOEXEC), 0);
	assert_int_equal(pipe2(error, O_CLOEXEC), 0);
	tool->pid = fork();
	assert_true(tool->pid >= 0);
	if (tool->pid == 0)
		execute(path, arguments, (const int[]){input[0], output[1], error[1]}, parent);
	close(input[0]);
	close(output[1]);
	close(error[1]);
	tool->input = input[1];
	tool->output = output[0];
	tool->error = error[0];
}

/* false at the end. */
static bool read_some(struct tool *tool, int64_t deadline)
{
	size_t room = sizeof(tool->text) - 1 - tool->len;
	ssize_t n;

	if (socket_wait(tool->output, POLLIN, deadline) < 0)
		fail_msg("vsockctl says no more than: %s", tool->text);
	n = read(tool->output, tool->text + tool->len, room);
	assert_true(n >= 0);
	tool->len += (size_t)n;
	tool->text[tool->len] = '\0';
	return n > 0;
}

void tool_wait_text(struct tool *tool, const char *text)
{
	int64_t deadline = deadline_in(SETUP_LIMIT);

	while (!strstr(tool->text, text))
		if (!read_some(tool, deadline))
			fail_msg("vsockctl ended without \"%s\": %s", text, tool->text);
}

int tool_end(struct tool *tool)
{
	int64_t deadline = deadline_in(SETUP_LIMIT);
	ssize_t n;
	int status;

	if (tool->input >= 0)
		close(tool->input);
	while (read_some(tool, deadline))
		;
	n = read(tool->error, tool->complaint, sizeof(tool->complaint) - 1);
	assert_true(n >= 0);
	tool->complaint[n] = '\0';
	close(tool->output);
	close(tool->error);
	assert_int_equal(waitpid(tool->pid, &status, 0), tool->pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int tool_run(struct tool *tool, struct setup *setup, const char *const *arguments)
{
	tool_start(tool, daemon_path(&setup->daemon, TOOL_CONTROL), arguments);
	return tool_end(tool);
}
