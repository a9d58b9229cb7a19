/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Process 1 of a guest that runs the vsock tests of the Linux kernel with another
 * guest, linked statically. Its kernel's command line says which of the two it is:
 * vsockd.guest=0 or 1. The other's CID and address follow from that, and who
 * begins: in the first half guest 0 is the client, in the second guest 1.
 *
 * /plan has a test a line: the program in /suite, and its number there or "-" for
 * a program that runs all it has. Each gets a program and a control port of its own, so one
 * that fails takes no other along. The tests meet over TCP on the network card,
 * which is no part of what is tested.
 *
 * What comes of it goes to the console: "suite: HALF LINE STATUS" for each, with
 * what the program printed before, each line behind "suite| HALF LINE: ".
 */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/guest/boot.h"

#define N_TESTS_MAX   64
#define FIRST_CID     42
#define FIRST_PORT    2000
#define TEST_MS	      60000
#define MEET_MS	      90000
#define OUTPUT_MAX    8192
#define ARGUMENTS_MAX (N_TESTS_MAX + 8)
#define ADDRESS	      "192.0.2.%d"
#define STATUS_LIMIT  124 /* as timeout(1) */

struct planned {
	char program[64];
	int number; /* -1: all that the program has */
};

static struct planned plan[N_TESTS_MAX];
static int n_planned;
static int guest; /* 0 or 1 */
static char output[OUTPUT_MAX];

static uint64_t now_ms(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

static bool read_command_line(void)
{
	static char line[4096];
	int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);
	const char *found;

	close(fd);
	if (n <= 0)
		return false;
	found = strstr(line, "vsockd.guest=");
	return found && sscanf(found, "vsockd.guest=%d", &guest) == 1 && guest >= 0 && guest <= 1;
}

static int set_up_network(void)
{
	struct ifreq request = {.ifr_name = "eth0"};
	struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	char text[32];
	int error = 0;

	snprintf(text, sizeof(text), ADDRESS, guest + 1);
	address->sin_family = AF_INET;
	inet_pton(AF_INET, text, &address->sin_addr);
	if (fd < 0 || ioctl(fd, SIOCSIFADDR, &request) < 0)
		error = -errno;
	request.ifr_flags = IFF_UP | IFF_RUNNING;
	if (error == 0 && ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		error = -errno;
	close(fd);
	return error;
}

static bool read_plan(void)
{
	FILE *file = fopen("/plan", "re");
	char number[16];

	if (!file)
		return false;
	while (n_planned < N_TESTS_MAX &&
	       fscanf(file, "%63s %15s%*[^\n]", plan[n_planned].program, number) == 2) {
		plan[n_planned].number = strcmp(number, "-") ? atoi(number) : -1;
		n_planned++;
	}
	fclose(file);
	return n_planned > 0;
}

/* How many tests the program of plan[i] has, as far as the plan knows. */
static int n_numbers(int i)
{
	int n = 0;

	for (int j = 0; j < n_planned; j++)
		n += !strcmp(plan[j].program, plan[i].program);
	return n;
}

struct arguments {
	char text[ARGUMENTS_MAX][64];
	char *argv[ARGUMENTS_MAX + 1];
	int n;
};

static void add(struct arguments *arguments, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
static void add(struct arguments *arguments, const char *format, ...)
{
	char *text = arguments->text[arguments->n];
	va_list list;

	va_start(list, format);
	vsnprintf(text, sizeof(arguments->text[0]), format, list);
	va_end(list);
	arguments->argv[arguments->n++] = text;
}

static bool is_perf(int i)
{
	return !strcmp(plan[i].program, "vsock_perf");
}

static void add_perf(struct arguments *arguments, int port, bool is_client)
{
	if (is_client) {
		add(arguments, "--sender=%d", FIRST_CID + !guest);
		add(arguments, "--bytes=64M");
	}
	add(arguments, "--port=%d", port);
}

static void add_test(struct arguments *arguments, int i, int port, bool is_client)
{
	add(arguments, "--mode=%s", is_client ? "client" : "server");
	add(arguments, "--control-port=%d", port);
	add(arguments, "--peer-cid=%d", FIRST_CID + !guest);
	if (is_client)
		add(arguments, "--control-host=" ADDRESS, !guest + 1);
	for (int number = 0; plan[i].number >= 0 && number < n_numbers(i); number++)
		if (number != plan[i].number)
			add(arguments, "--skip=%d", number);
}

static void execute(int half, int i, bool is_client)
{
	static struct arguments arguments;
	int port = FIRST_PORT + half * N_TESTS_MAX + i;
	struct rlimit none = {0};

	add(&arguments, "/suite/%s", plan[i].program);
	if (is_perf(i))
		add_perf(&arguments, port, is_client);
	else
		add_test(&arguments, i, port, is_client);
	setrlimit(RLIMIT_CORE, &none);
	signal(SIGPIPE, SIG_DFL);
	execv(arguments.argv[0], arguments.argv);
	dprintf(2, "%s: %s\n", arguments.argv[0], strerror(errno));
	_exit(127);
}

/* Until it ends or its time is over; the output is kept. */
static int run_once(int half, int i, bool is_client)
{
	uint64_t end = now_ms() + (is_client ? TEST_MS : MEET_MS + TEST_MS);
	size_t len = 0;
	bool is_killed = false;
	int pipe_fds[2], status = 0;
	pid_t pid;

	output[0] = '\0';
	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return 127;
	pid = fork();
	if (pid == 0) {
		dup2(pipe_fds[1], 1);
		dup2(pipe_fds[1], 2);
		execute(half, i, is_client);
	}
	close(pipe_fds[1]);
	for (;;) {
		struct pollfd poll_fd = {.fd = pipe_fds[0], .events = POLLIN};
		uint64_t now = now_ms();
		char rest[256];
		ssize_t n;

		if (now >= end && !is_killed) {
			kill(pid, SIGKILL);
			is_killed = true;
		}
		if (poll(&poll_fd, 1, is_killed ? 1000 : (int)(end - now)) == 0)
			continue;
		n = len < sizeof(output) - 1
			    ? read(pipe_fds[0], output + len, sizeof(output) - 1 - len)
			    : read(pipe_fds[0], rest, sizeof(rest));
		if (n <= 0)
			break;
		if (len < sizeof(output) - 1)
			len += (size_t)n;
		output[len] = '\0';
	}
	close(pipe_fds[0]);
	waitpid(pid, &status, 0);
	if (is_killed)
		return STATUS_LIMIT;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Its server may not listen yet: then it has not begun. */
static bool has_begun(int i)
{
	return !is_perf(i) && strstr(output, "Control socket connected") != NULL;
}

static void run(int half, int i)
{
	bool is_client = half == guest;
	uint64_t end = now_ms() + MEET_MS;
	int status;

	for (;;) {
		status = run_once(half, i, is_client);
		if (!is_client || status == 0 || has_begun(i) || now_ms() >= end)
			break;
		poll(NULL, 0, 20);
	}
	for (char *line = strtok(output, "\n"); line; line = strtok(NULL, "\n"))
		printf("suite| %d %d: %s\n", half, i, line);
	printf("suite: %d %d %d\n", half, i, status);
}

int main(void)
{
	int error;

	boot_console();
	boot_modules();
	error = read_command_line() && read_plan() ? set_up_network() : -ENOENT;
	if (error < 0)
		printf("suite: no plan or no network: %s\n", strerror(-error));
	for (int half = 0; error == 0 && half < 2; half++)
		for (int i = 0; i < n_planned; i++)
			run(half, i);
	printf("suite: finished\n");
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
