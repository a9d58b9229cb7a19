/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One row a command: what it is called, what it takes, what it does. The list is
 * in command.c; --help is made of it, and the tests hold the manual page and the
 * shell completions against it.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct context {
	const char *path; /* of the control socket */
	bool is_json;
	int argc; /* the command's arguments, without its name */
	char **argv;
};

struct command {
	const char *name;
	const char *arguments; /* as in --help */
	int n_min, n_max;      /* of arguments; INT_MAX: any number */
	bool has_json;
	const char *about;			   /* one line */
	int (*run)(const struct context *context); /* the exit code */
};

extern const struct command commands[];
extern const size_t n_commands;

/* An argument that has to be a number. 0, or an exit code, said on stderr. */
int command_read_cid(const char *text, uint64_t *ret);
int command_read_number(const char *what, const char *text, uint64_t max, uint64_t *ret);

/* status.c */
int status_run(const struct context *context);
/* capture.c */
int capture_run(const struct context *context);
/* connections.c */
int connections_run(const struct context *context);
int kill_run(const struct context *context);
/* log_level.c */
int log_level_run(const struct context *context);
/* metrics.c */
int metrics_run(const struct context *context);
/* suspend.c */
int suspend_run(const struct context *context);
int resume_run(const struct context *context);
/* stream.c */
int connect_run(const struct context *context);
int listen_run(const struct context *context);
/* top.c */
int top_run(const struct context *context);
/* reload.c */
int reload_run(const struct context *context);
int add_run(const struct context *context);
int remove_run(const struct context *context);
/* replace.c */
int replace_run(const struct context *context);
/* show.c */
int show_run(const struct context *context);
