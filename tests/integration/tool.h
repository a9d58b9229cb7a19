/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * vsockctl under test ($VSOCKCTL), with a setup whose vsockd was started with
 * CONTROL_ARGUMENTS. Dies with the test.
 */

#include <sys/types.h>

#include "tests/integration/setup.h"

#define TOOL_CONTROL   "control" /* in the directory of the daemon */
#define TOOL_ARGUMENTS ((const char *const[]){"--control", "@/" TOOL_CONTROL, NULL})
#define TOOL_TEXT_MAX  65536

struct tool {
	pid_t pid;
	int input, output, error; /* our ends of its standard streams; -1: closed */
	char text[TOOL_TEXT_MAX]; /* what it wrote to stdout so far */
	size_t len;
	char complaint[2048]; /* to stderr; once it has ended */
};

/* Start with these arguments, NULL-terminated, and VSOCKD_CONTROL as path (NULL: not set). */
void tool_start(struct tool *tool, const char *path, const char *const *arguments);

/* Wait until stdout has had this text. */
void tool_wait_text(struct tool *tool, const char *text);

/* Close its stdin, read to the end of both streams, wait. The exit status as a shell shows it. */
int tool_end(struct tool *tool);

/* Start and end, at the setup's socket. */
int tool_run(struct tool *tool, struct setup *setup, const char *const *arguments);
