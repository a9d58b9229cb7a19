/* SPDX-License-Identifier: Apache-2.0 */

/*
 * vsockctl: asks a running vsockd through its control socket. Has no privilege of
 * its own: whoever may write to the socket may do what it does.
 */

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "ctl/client.h"
#include "ctl/command.h"

/* Sanitizer builds only: an answer to the run-time's question. What ends is not freed. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0";
}

static void print_help(void)
{
	printf("Usage: vsockctl [--control PATH] [--json] COMMAND [ARGUMENT]...\n"
	       "\n"
	       "Asks a running vsockd, through the socket that its option --control made.\n"
	       "\n"
	       "Commands:\n");
	for (size_t i = 0; i < n_commands; i++) {
		int n = printf("  %s %s", commands[i].name, commands[i].arguments);

		if (n > 29)
			printf("\n%30s%s\n", "", commands[i].about);
		else
			printf("%*s%s\n", 30 - n, "", commands[i].about);
	}
	printf("\n"
	       "Options:\n"
	       "  --control PATH              the socket (default: the environment variable\n"
	       "                              VSOCKD_CONTROL, or %s)\n"
	       "  --json                      print JSON\n"
	       "  --help                      print this text and exit\n"
	       "  --version                   print the version and exit\n"
	       "\n"
	       "The manual page vsockctl(1) has the details and examples.\n",
	       CONTROL_PATH_DEFAULT);
}

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < n_commands; i++)
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
	return NULL;
}

static int run_command(struct context *context)
{
	const struct command *command = find_command(context->argv[0]);

	if (!command)
		return complain(EX_USAGE, "unknown command \"%.100s\"; see vsockctl --help",
				context->argv[0]);
	context->argc--;
	context->argv++;
	if (context->argc < command->n_min || context->argc > command->n_max)
		return complain(EX_USAGE, "%s arguments; usage: vsockctl %s %s",
				context->argc < command->n_min ? "too few" : "too many",
				command->name, command->arguments);
	if (context->is_json && !command->has_json)
		return complain(EX_USAGE, "%s prints no JSON", command->name);
	return command->run(context);
}

int main(int argc, char **argv)
{
	enum { OPTION_CONTROL = 256, OPTION_JSON, OPTION_HELP, OPTION_VERSION };
	static const struct option options[] = {
		{"control", required_argument, NULL, OPTION_CONTROL},
		{"json", no_argument, NULL, OPTION_JSON},
		{"help", no_argument, NULL, OPTION_HELP},
		{"version", no_argument, NULL, OPTION_VERSION},
		{NULL, 0, NULL, 0},
	};
	struct context context = {.path = getenv("VSOCKD_CONTROL")};
	int option, r;

	opterr = 0;
	while ((option = getopt_long(argc, argv, "+:", options, NULL)) != -1) {
		switch (option) {
		case OPTION_CONTROL:
			context.path = optarg;
			break;
		case OPTION_JSON:
			context.is_json = true;
			break;
		case OPTION_HELP:
			print_help();
			return EX_OK;
		case OPTION_VERSION:
			puts("vsockctl " VSOCKD_VERSION);
			return EX_OK;
		case ':':
			return complain(EX_USAGE, "\"%.100s\" needs a value; see vsockctl --help",
					argv[optind - 1]);
		default:
			return complain(EX_USAGE, "unknown option \"%.100s\"; see vsockctl --help",
					argv[optind - 1]);
		}
	}
	if (optind == argc)
		return complain(EX_USAGE, "no command was given; see vsockctl --help");
	if (!context.path || !*context.path)
		context.path = CONTROL_PATH_DEFAULT;
	context.argc = argc - optind;
	context.argv = argv + optind;
	r = run_command(&context);
	if ((fflush(stdout) == EOF || ferror(stdout)) && r == EX_OK)
		return complain(EX_IOERR, "cannot write the output: %s", strerror(errno));
	return r;
}
