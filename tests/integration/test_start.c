/* SPDX-License-Identifier: Apache-2.0 */

/* What vsockd makes of its command line and of what it finds in the file system. */

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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"
#include "tests/integration/transfer.h"

#define KIB   1024u
#define LIMIT SETUP_LIMIT

#define NOBODY	  65534
#define SOCKET_FD 5

/* sysexits.h */
enum { USAGE = 64, DATAERR = 65, NOINPUT = 66, UNAVAILABLE = 69, CANTCREAT = 73, NOPERM = 77 };

/* ---- a program that is started by hand ---- */

struct program {
	pid_t pid;
	int output; /* of both standard streams */
	char text[8192];
	size_t len;
};

/* What stands at SOCKET_FD of the program: nothing, fd, or what is accepted from it. */
struct inherited {
	int fd;
	bool is_accepted_from;
};

/* Leaves the standard streams, and fd as SOCKET_FD. */
static void closefrom_but(int fd)
{
	if (fd >= 0) {
		dup2(fd, SOCKET_FD);
		fcntl(SOCKET_FD, F_SETFD, 0);
		closefrom(SOCKET_FD + 1);
	}
	for (int i = STDERR_FILENO + 1; i < SOCKET_FD; i++)
		close(i);
	if (fd < 0)
		closefrom(SOCKET_FD);
}

static void execute(const char *const *arguments, int output, struct inherited inherited)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (inherited.is_accepted_from)
		inherited.fd = accept(inherited.fd, NULL, NULL);
	dup2(output, STDOUT_FILENO);
	dup2(output, STDERR_FILENO);
	closefrom_but(inherited.fd);
	execvp(arguments[0], (char *const *)(uintptr_t)arguments);
	_exit(127);
}

static void program_start(struct program *program, const char *const *arguments,
			  struct inherited inherited)
{
	int pair[2];

	*program = (struct program){0};
	assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
	program->output = pair[0];
	program->pid = fork();
	assert_true(program->pid >= 0);
	if (program->pid == 0)
		execute(arguments, pair[1], inherited);
	close(pair[1]);
}

/* Read until the text comes, or (NULL) to the end. */
static void program_read(struct program *program, const char *text)
{
	int64_t deadline = deadline_in(LIMIT);

	while (!text || !strstr(program->text, text)) {
		size_t room = sizeof(program->text) - 1 - program->len;
		ssize_t n;

		if (socket_wait(program->output, POLLIN, deadline) < 0)
			fail_msg("\"%s\" does not come, but: %s", text ? text : "the end",
				 program->text);
		n = read(program->output, program->text + program->len, room);
		assert_true(n >= 0);
		if (n == 0)
			break;
		program->len += (size_t)n;
	}
	if (text && !strstr(program->text, text))
		fail_msg("ended without \"%s\": %s", text, program->text);
}

/* The exit status as a shell shows it. */
static int program_end(struct program *program)
{
	int status;

	program_read(program, NULL);
	close(program->output);
	assert_int_equal(waitpid(program->pid, &status, 0), program->pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int run(const char *const *arguments, char ret_text[static 8192])
{
	struct program program;
	int code;

	program_start(&program, arguments, (struct inherited){.fd = -1});
	code = program_end(&program);
	memcpy(ret_text, program.text, sizeof(program.text));
	return code;
}

/* One line, and that text in it. Sanitizer builds say what they are before. */
static void check_line(const char *line, const char *text)
{
	const char *newline = strchr(line, '\n');

	if (newline && strstr(line, "built with sanitizers")) {
		line = newline + 1;
		newline = strchr(line, '\n');
	}
	if (!newline || newline[1] != '\0' || !strstr(line, text))
		fail_msg("\"%s\" awaited in one line, got: %s", text, line);
}

#define ARGUMENTS_MAX 16

/* "@" is the directory of home. */
static void expect_failure(struct daemon *home, const char *const *options, int code,
			   const char *text)
{
	const char *arguments[ARGUMENTS_MAX + 1] = {getenv("VSOCKD")};
	static char expanded[ARGUMENTS_MAX][512];
	char line[8192];
	int result;

	for (size_t i = 0; options[i]; i++) {
		const char *at = strchr(options[i], '@');

		assert_true(i + 1 < ARGUMENTS_MAX);
		snprintf(expanded[i], sizeof(expanded[i]), "%.*s%s%s",
			 at ? (int)(at - options[i]) : (int)strlen(options[i]), options[i],
			 at ? home->directory : "", at ? at + 1 : "");
		arguments[i + 1] = expanded[i];
	}
	result = run(arguments, line);
	if (result != code)
		fail_msg("%s %s: exit code %d instead of %d: %s", options[0], options[1], result,
			 code, line);
	check_line(line, text);
}

static int make_home(void **state)
{
	*state = calloc(1, sizeof(struct daemon));
	return *state && daemon_prepare(*state) == 0 ? 0 : -1;
}

/* A failed start left nothing but what the test put there. */
static int remove_home(void **state)
{
	char directory[64];

	memcpy(directory, ((struct daemon *)*state)->directory, sizeof(directory));
	daemon_stop(*state, LIMIT);
	free(*state);
	return access(directory, F_OK) == 0 ? -1 : 0;
}

static bool is_there(struct daemon *home, const char *name)
{
	return access(daemon_path(home, name), F_OK) == 0;
}

/* ---- wrong values ---- */

#define PATHS "--socket", "@/vm", "--uds-path", "@/host"
#define TEN   "0123456789"
#define LONG  TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN TEN

static const struct {
	const char *options[ARGUMENTS_MAX];
	int code;
	const char *text;
} wrong[] = {
	{{"--guest-cid", "0", PATHS}, DATAERR, "guest-cid \"0\""},
	{{"--guest-cid", "1", PATHS}, DATAERR, "guest-cid \"1\""},
	{{"--guest-cid", "2", PATHS}, DATAERR, "guest-cid \"2\""},
	{{"--guest-cid", "4294967295", PATHS}, DATAERR, "guest-cid"},
	{{"--guest-cid", "4294967296", PATHS}, DATAERR, "guest-cid"},
	{{"--guest-cid", "18446744073709551619", PATHS}, DATAERR, "guest-cid"},
	{{"--guest-cid", "-3", PATHS}, USAGE, "guest-cid"},
	{{"--guest-cid", "three", PATHS}, USAGE, "guest-cid"},
	{{"--guest-cid", "", PATHS}, USAGE, "guest-cid"},
	{{"--tx-buffer-size", "4095", PATHS}, DATAERR, "tx-buffer-size"},
	{{"--tx-buffer-size", "16777217", PATHS}, DATAERR, "tx-buffer-size"},
	{{"--queue-size", "100", PATHS}, DATAERR, "queue-size"},
	{{"--max-connections", "0", PATHS}, DATAERR, "max-connections"},
	{{"--log-level", "loud", PATHS}, USAGE, "log-level"},
	{{"--unknown", "1", PATHS}, USAGE, "unknown"},
	{{"--guest-cid", "3"}, USAGE, "socket"},
	{{"--socket", "@/vm"}, USAGE, "uds-path"},
	{{"--vm", "guest-cid=3,socket=@/vm"}, USAGE, "uds-path"},
	{{"--socket", "@/" LONG, "--uds-path", "@/host"}, DATAERR, "socket"},
	{{"--socket", "@/vm", "--uds-path", "@/" LONG}, DATAERR, "uds-path"},
	{{"--socket", "@/none/vm", "--uds-path", "@/host"}, NOINPUT, "none"},
	{{"--socket", "@/vm", "--uds-path", "@/none/host"}, NOINPUT, "none"},
	{{"--socket", "@/same", "--uds-path", "@/./same"}, DATAERR, "same"},
	{{"--fd", "77", "--uds-path", "@/host"}, NOINPUT, "77"},
	{{"--fd", "0", "--uds-path", "@/host"}, DATAERR, "fd"},
	{{"--worker", "/none", PATHS}, UNAVAILABLE, "/none"},
};

static void test_a_wrong_value_is_told_in_one_line_and_by_the_exit_code(void **state)
{
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		expect_failure(*state, wrong[i].options, wrong[i].code, wrong[i].text);
	assert_false(is_there(*state, "vm"));
	assert_false(is_there(*state, "host"));
}

static void expect_two_vms(struct daemon *home, const char *first, const char *second)
{
	char vms[2][256];
	const char *options[] = {"--vm", vms[0], "--vm", vms[1], NULL};

	for (size_t i = 0; i < 2; i++) {
		const char *values = i ? second : first;
		size_t n = 0;

		/* Several "@" in one argument. */
		for (; *values; values++)
			n += (size_t)snprintf(vms[i] + n, sizeof(vms[i]) - n, "%.*s",
					      *values == '@' ? 64 : 1,
					      *values == '@' ? home->directory : values);
	}
	expect_failure(home, options, DATAERR, "vm ");
}

static void test_two_vms_may_share_nothing(void **state)
{
	expect_two_vms(*state, "guest-cid=3,socket=@/a,uds-path=@/b",
		       "guest-cid=3,socket=@/c,uds-path=@/d");
	expect_two_vms(*state, "guest-cid=3,socket=@/a,uds-path=@/b",
		       "guest-cid=4,socket=@/a,uds-path=@/d");
	expect_two_vms(*state, "guest-cid=3,socket=@/a,uds-path=@/b",
		       "guest-cid=4,socket=@/b,uds-path=@/d");
	expect_two_vms(*state, "guest-cid=3,socket=@/a,uds-path=@/b",
		       "guest-cid=4,socket=@/c,uds-path=@/./b");
	/* Port 22 of the first VM's host programs. */
	expect_two_vms(*state, "guest-cid=3,socket=@/a,uds-path=@/b",
		       "guest-cid=4,socket=@/c,uds-path=@/b_22");
}

static void test_a_file_in_the_way_is_left_alone(void **state)
{
	static const char *const options[] = {PATHS, NULL};
	struct daemon *home = *state;
	const char *names[] = {"vm", "host"};

	for (size_t i = 0; i < 2; i++) {
		int fd = open(daemon_path(home, names[i]), O_WRONLY | O_CREAT | O_EXCL, 0600);

		assert_true(fd >= 0);
		assert_int_equal(write(fd, "precious", 8), 8);
		expect_failure(home, options, CANTCREAT, "regular file");
		assert_int_equal(lseek(fd, 0, SEEK_END), 8);
		close(fd);
		assert_int_equal(unlink(daemon_path(home, names[i])), 0);
		assert_false(is_there(home, names[1 - i]));
	}
}

static void test_a_link_and_a_directory_in_the_way_are_left_alone(void **state)
{
	static const char *const options[] = {PATHS, NULL};
	struct daemon *home = *state;

	assert_int_equal(symlink("elsewhere", daemon_path(home, "vm")), 0);
	expect_failure(home, options, CANTCREAT, "symbolic link");
	assert_int_equal(unlink(daemon_path(home, "vm")), 0);
	assert_int_equal(mkdir(daemon_path(home, "host"), 0700), 0);
	expect_failure(home, options, CANTCREAT, "directory");
	assert_int_equal(rmdir(daemon_path(home, "host")), 0);
	assert_false(is_there(home, "vm"));
	assert_false(is_there(home, "elsewhere"));
}

/* Root may have built where nobody else may look. */
static bool may_others_run_it(void)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s", getenv("VSOCKD"));
	for (char *slash = strrchr(path, '/'); slash && slash != path; slash = strrchr(path, '/')) {
		struct stat directory;

		*slash = '\0';
		if (stat(path, &directory) != 0 || !(directory.st_mode & S_IXOTH)) {
			print_message("skipped: an ordinary user may not enter %s\n", path);
			return false;
		}
	}
	return true;
}

static void test_an_unwritable_directory_is_told(void **state)
{
	struct daemon *home = *state;
	char socket[128], uds_path[128], user[32], group[32], line[8192];
	const char *arguments[] = {"setpriv",	     user,	 group,	 "--clear-groups",
				   getenv("VSOCKD"), "--socket", socket, "--uds-path",
				   uds_path,	     NULL};
	uid_t uid = geteuid() ? geteuid() : NOBODY;
	gid_t gid = geteuid() ? getegid() : NOBODY;

	if (geteuid() == 0 && !may_others_run_it())
		skip();
	snprintf(user, sizeof(user), "--reuid=%u", uid);
	snprintf(group, sizeof(group), "--regid=%u", gid);
	snprintf(socket, sizeof(socket), "%s/vm", home->directory);
	snprintf(uds_path, sizeof(uds_path), "%s/host", home->directory);
	assert_int_equal(chmod(home->directory, 0555), 0);
	if (geteuid())
		assert_int_equal(run(arguments + 4, line), NOPERM);
	else
		assert_int_equal(run(arguments, line), NOPERM);
	check_line(line, "not writable");
	assert_int_equal(chmod(home->directory, 0700), 0);
}

static void test_a_worker_that_is_none_ends_the_start(void **state)
{
	struct daemon *home = *state;
	char socket[128], uds_path[128], line[8192];
	const char *arguments[] = {getenv("VSOCKD"), "--worker",   "/bin/false", "--socket",
				   socket,	     "--uds-path", uds_path,	 NULL};

	snprintf(socket, sizeof(socket), "%s/vm", home->directory);
	snprintf(uds_path, sizeof(uds_path), "%s/host", home->directory);
	assert_int_not_equal(run(arguments, line), 0);
	assert_non_null(strstr(line, "worker"));
	assert_false(is_there(home, "vm"));
	assert_false(is_there(home, "host"));
}

/* ---- sockets that are there already ---- */

static void run_guest(const char *socket)
{
	struct guest_options options = {.socket = socket, .cid = 3};
	struct guest guest;
	struct guest_connection *connection;
	int error = guest_start(&guest, &options);

	assert_int_equal(error, 0);
	/* Nobody listens: the answer came from a device that works. */
	connection = guest_connect(&guest, PACKET_HOST_CID, 1000);
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
	assert_string_equal(guest_violations(&guest), "");
	guest_end(&guest);
}

static void test_a_stale_socket_is_replaced(void **state)
{
	struct daemon *home = *state;
	const char *arguments[] = {"", PATHS, "--worker", getenv("VSOCKD_WORKER"), NULL};
	int fds[2] = {socket_listen(daemon_path(home, "vm"), SOCK_STREAM),
		      socket_listen(daemon_path(home, "host"), SOCK_STREAM)};

	assert_true(fds[0] >= 0 && fds[1] >= 0);
	close(fds[0]);
	close(fds[1]);
	assert_int_equal(daemon_start(home, arguments, NULL, LIMIT), 0);
	assert_int_equal(daemon_wait_log(home, "ready: ", LIMIT), 0);
	run_guest(daemon_path(home, "vm"));
	assert_int_equal(kill(home->pid, SIGTERM), 0);
	assert_int_equal(socket_wait(home->pidfd, POLLIN, deadline_in(LIMIT)), 0);
	assert_false(is_there(home, "vm"));
	assert_false(is_there(home, "host"));
}

static void test_a_live_socket_is_refused_and_its_owner_not_disturbed(void **state)
{
	struct setup *setup = *state;
	const char *with_socket[] = {"--socket", "@/vm0", "--uds-path", "@/other", NULL};
	const char *with_uds_path[] = {"--socket", "@/other", "--uds-path", "@/host0", NULL};

	expect_failure(&setup->daemon, with_socket, CANTCREAT, "listens on it");
	expect_failure(&setup->daemon, with_uds_path, CANTCREAT, "listens on it");
	assert_false(is_there(&setup->daemon, "other"));
	setup_guest(setup, 0, (struct guest_options){0});
	transfer_all(setup, 0, 1000, 100 * KIB);
	setup_end_guest(setup, 0);
	/* Now with a front-end in the backlog, too. */
	setup_guest(setup, 0, (struct guest_options){0});
	expect_failure(&setup->daemon, with_socket, CANTCREAT, "listens on it");
}

/* ---- sockets that are handed over ---- */

static void make_fd_arguments(struct daemon *home, const char *ret_arguments[static 8])
{
	ret_arguments[0] = getenv("VSOCKD");
	ret_arguments[1] = "--fd";
	ret_arguments[2] = "5";
	ret_arguments[3] = "--uds-path";
	ret_arguments[4] = daemon_path(home, "host");
	ret_arguments[5] = "--worker";
	ret_arguments[6] = getenv("VSOCKD_WORKER");
	ret_arguments[7] = NULL;
}

static void test_a_listening_socket_may_be_handed_over(void **state)
{
	struct daemon *home = *state;
	const char *arguments[8];
	char path[128];
	struct program program;
	int listener;

	snprintf(path, sizeof(path), "%s/vm", home->directory);
	listener = socket_listen(path, SOCK_STREAM);
	assert_true(listener >= 0);
	make_fd_arguments(home, arguments);
	program_start(&program, arguments, (struct inherited){.fd = listener});
	close(listener);
	program_read(&program, "ready: ");
	run_guest(path);
	run_guest(path);
	assert_int_equal(kill(program.pid, SIGTERM), 0);
	assert_int_equal(program_end(&program), 0);
	/* Whoever made it removes it. */
	assert_true(is_there(home, "vm"));
	assert_false(is_there(home, "host"));
}

static void test_a_connected_socket_may_be_handed_over_and_ends_with_its_session(void **state)
{
	struct daemon *home = *state;
	const char *arguments[8];
	char path[128];
	struct program program;
	int listener;

	snprintf(path, sizeof(path), "%s/vm", home->directory);
	listener = socket_listen(path, SOCK_STREAM);
	assert_true(listener >= 0);
	assert_int_equal(fcntl(listener, F_SETFL, 0), 0);
	make_fd_arguments(home, arguments);
	program_start(&program, arguments,
		      (struct inherited){.fd = listener, .is_accepted_from = true});
	close(listener);
	run_guest(path);
	assert_int_equal(program_end(&program), 0);
	assert_false(is_there(home, "host"));
}

static void test_an_fd_that_is_no_unix_socket_is_refused(void **state)
{
	const char *arguments[8];
	struct program program;
	int file = open("/dev/null", O_RDWR | O_CLOEXEC);

	make_fd_arguments(*state, arguments);
	program_start(&program, arguments, (struct inherited){.fd = file});
	close(file);
	assert_int_equal(program_end(&program), DATAERR);
	check_line(program.text, "not a unix stream socket");
}

/* ---- information ---- */

static void test_capabilities_help_and_version_are_printed(void **state)
{
	static const struct {
		const char *option, *first;
	} cases[] = {
		{"--print-capabilities", "{\"type\": \"vsock\"}\n"},
		{"--help", "Usage: vsockd "},
		{"--version", "vsockd "},
	};

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		const char *arguments[] = {getenv("VSOCKD"), cases[i].option, NULL};
		char text[8192];

		assert_int_equal(run(arguments, text), 0);
		assert_memory_equal(text, cases[i].first, strlen(cases[i].first));
	}
}

static size_t log_size(struct daemon *home)
{
	struct stat status;

	assert_int_equal(stat(daemon_path(home, "log"), &status), 0);
	return (size_t)status.st_size;
}

static void test_the_log_level_chooses_what_is_said(void **state)
{
	struct daemon *home = *state;
	const char *arguments[] = {
		"", PATHS, "--worker", getenv("VSOCKD_WORKER"), "--log-level", "error", NULL};

	assert_int_equal(daemon_start(home, arguments, "host", LIMIT), 0);
	run_guest(daemon_path(home, "vm"));
	assert_int_equal(log_size(home), 0);
	assert_int_equal(kill(home->pid, SIGTERM), 0);
	assert_int_equal(socket_wait(home->pidfd, POLLIN, deadline_in(LIMIT)), 0);
	waitpid(home->pid, NULL, 0);
	close(home->pidfd);
	assert_int_equal(log_size(home), 0);
	arguments[8] = "info";
	assert_int_equal(daemon_start(home, arguments, "host", LIMIT), 0);
	run_guest(daemon_path(home, "vm"));
	assert_int_equal(daemon_wait_log(home, "vm=3 info: front-end left", LIMIT), 0);
	assert_true(daemon_log_has(home, "ready: 1 VM"));
}

/* ---- the whole ---- */

/* And end what was chosen. */
static void run_chosen(struct setup *setup, const char *vm_options, size_t n_vms)
{
	struct transfer transfers[SETUP_VMS_MAX];

	setup_start(setup, n_vms, vm_options, NULL);
	for (size_t i = 0; i < n_vms; i++) {
		setup_guest(setup, i, (struct guest_options){.style = (enum guest_style)(i % 3)});
		transfer_start(&transfers[i], setup, i, 1000, 900 * KIB);
	}
	for (size_t n = 100; n < 900; n += 100)
		for (size_t i = 0; i < n_vms; i++)
			transfer_run_to(&transfers[i], n * KIB);
	for (size_t i = 0; i < n_vms; i++)
		transfer_finish(&transfers[i]);
	setup_stop(setup);
	free(setup);
}

static void run_whole(const char *vm_options, size_t n_vms, uid_t user)
{
	struct setup *setup = calloc(1, sizeof(*setup));

	assert_non_null(setup);
	setup_choose_user(setup, user);
	run_chosen(setup, vm_options, n_vms);
}

static void test_a_file_starts_the_vms_that_stand_in_it(void **state)
{
	struct setup *setup = calloc(1, sizeof(*setup));

	(void)state;
	assert_non_null(setup);
	setup_choose_file(setup);
	run_chosen(setup, "tx_buffer_size=65536,max-connections=8", 2);
}

/* ---- a file that is checked only ---- */

#define CONFIG_ERROR 78

static void write_config(struct daemon *home, const char *text)
{
	FILE *file = fopen(daemon_path(home, "vsockd.yaml"), "w");

	assert_non_null(file);
	for (; *text; text++) {
		if (*text == '@')
			fputs(home->directory, file);
		else
			fputc(*text, file);
	}
	assert_int_equal(fclose(file), 0);
}

/* ---- as vhost-device-vsock is documented ---- */

static bool is_established(void *context)
{
	const struct guest_connection *connection = context;

	return connection->state == GUEST_ESTABLISHED;
}

struct awaited {
	struct guest *guest;
	struct guest_connection *connection;
};

static bool has_come(void *context)
{
	struct awaited *awaited = context;

	awaited->connection = guest_accept(awaited->guest, 52);
	return awaited->connection != NULL;
}

/* A guest there, a connection each way, and its CID. */
static void check_served(struct daemon *home, uint64_t cid)
{
	static struct guest guest;
	struct awaited awaited = {.guest = &guest};
	struct guest_connection *connection;
	char socket[128], uds_path[128], name[32];
	int listener, accepted, program;

	snprintf(name, sizeof(name), "vhost%u.socket", (unsigned int)cid);
	snprintf(socket, sizeof(socket), "%s", daemon_path(home, name));
	snprintf(name, sizeof(name), "vm%u.vsock", (unsigned int)cid);
	snprintf(uds_path, sizeof(uds_path), "%s", daemon_path(home, name));
	assert_int_equal(guest_start(&guest, &(struct guest_options){.socket = socket, .cid = cid}),
			 0);

	listener = host_listen(uds_path, 1234);
	assert_true(listener >= 0);
	connection = guest_connect(&guest, PACKET_HOST_CID, 1234);
	assert_int_equal(guest_wait_until(&guest, is_established, connection, LIMIT), 0);
	accepted = host_accept(listener, LIMIT);
	assert_true(accepted >= 0);

	assert_int_equal(guest_listen(&guest, 52), 0);
	program = host_connect(uds_path, 52, LIMIT);
	assert_true(program >= 0);
	assert_int_equal(guest_wait_until(&guest, has_come, &awaited, LIMIT), 0);

	close(program);
	close(accepted);
	close(listener);
	guest_end(&guest);
	snprintf(uds_path + strlen(uds_path), 8, "_1234");
	unlink(uds_path);
}

/*
 * What README.md of vhost-device-vsock shows, but for the directory /tmp; what leads to the
 * host's AF_VSOCK is tested where that is.
 */
static void test_what_vhost_device_vsock_documents_starts_and_serves(void **state)
{
	static const char *const file = "vms:\n"
					"    - guest_cid: 3\n"
					"      socket: @/vhost3.socket\n"
					"      uds_path: @/vm3.vsock\n"
					"      tx_buffer_size: 65536\n"
					"      queue_size: 1024\n"
					"      groups: group1+groupA\n"
					"    - guest_cid: 4\n"
					"      socket: @/vhost4.socket\n"
					"      uds_path: @/vm4.vsock\n"
					"      tx_buffer_size: 32768\n"
					"      queue_size: 256\n"
					"      groups: group2+groupB\n";
	static const struct {
		const char *arguments[12];
		uint64_t first_cid;
	} uses[] = {
		{{"", "--guest-cid=4", "--socket=@/vhost4.socket", "--uds-path=@/vm4.vsock"}, 4},
		{{"", "--guest-cid=4", "--socket=@/vhost4.socket", "--uds-path=@/vm4.vsock",
		  "--tx-buffer-size=65536", "--queue-size=1024", "--groups=group1+groupA"},
		 4},
		{{"", "--vm",
		  "guest-cid=3,socket=@/vhost3.socket,uds-path=@/vm3.vsock,groups=group1+groupA",
		  "--vm",
		  "guest-cid=4,socket=@/vhost4.socket,uds-path=@/vm4.vsock,tx-buffer-size=32768,"
		  "queue-size=256"},
		 3},
		{{"", "--config", "@/vsockd.yaml"}, 3},
	};
	struct daemon *home = *state;
	const char *worker = getenv("VSOCKD_WORKER");

	write_config(home, file);
	for (size_t i = 0; i < sizeof(uses) / sizeof(uses[0]); i++) {
		const char *arguments[15] = {0};
		size_t n = 0;

		for (; uses[i].arguments[n]; n++)
			arguments[n] = uses[i].arguments[n];
		if (worker) {
			arguments[n] = "--worker";
			arguments[n + 1] = worker;
		}
		assert_int_equal(daemon_start(home, arguments, "vhost4.socket", LIMIT), 0);
		for (uint64_t cid = uses[i].first_cid; cid <= 4; cid++)
			check_served(home, cid);
		assert_int_equal(daemon_end(home, LIMIT), 0);
	}
}

static void test_check_config_says_what_would_be_served_and_makes_nothing(void **state)
{
	struct daemon *home = *state;
	char path[128], text[8192], expected[512];
	const char *const arguments[] = {getenv("VSOCKD"), "--check-config", path, NULL};

	snprintf(path, sizeof(path), "%s", daemon_path(home, "vsockd.yaml"));
	write_config(home, "vms:\n- {socket: @/vm, uds-path: @/host, uds-mode: 660}\n"
			   "control: @/control\n");
	assert_int_equal(run(arguments, text), 0);
	snprintf(expected, sizeof(expected),
		 "control %s/control (mode 600)\n"
		 "vm 3: socket %s/vm (mode 600), uds-path %s/host (mode 660), groups default, "
		 "tx-buffer-size 262144, max-connections 4096, max-handshakes 512\n",
		 home->directory, home->directory, home->directory);
	assert_string_equal(text, expected);
	assert_false(is_there(home, "vm"));
	assert_false(is_there(home, "host"));
	assert_false(is_there(home, "control"));
}

static void test_check_config_finds_what_a_start_would_find(void **state)
{
	static const struct {
		const char *file;
		const char *text;
	} wrong_files[] = {
		{"vms:\n- {socket: @/vm}\n", "vsockd.yaml:2: vm 3: no uds-path"},
		{"vms:\n- {socket: @/vm, uds-path: @/vm}\n", "vsockd.yaml:2: vm 3: uds-path"},
		{"vms:\n- {socket: @/none/vm, uds-path: @/host}\n", "vsockd.yaml:2: vm 3: socket"},
		{"vms:\n- {socket: @/vm, uds-path: @/vsockd.yaml}\n", "regular file is in the way"},
		{"vms:\n- {socket: @/vm, uds-path: @/x/../vm}\n", "x/.."},
		{"vms:\n- {socket: @/vm, uds-path: @/./vm}\n", "it is also the socket of vm 3"},
		{"vms:\n- {socket: @/vm, uds-path: @/host}\nworker: /none\n", "/none"},
	};
	struct daemon *home = *state;

	for (size_t i = 0; i < sizeof(wrong_files) / sizeof(wrong_files[0]); i++) {
		static const char *const options[] = {"--check-config", "@/vsockd.yaml", NULL};

		write_config(home, wrong_files[i].file);
		expect_failure(home, options, CONFIG_ERROR, wrong_files[i].text);
	}
}

static void test_several_vms_work_side_by_side(void **state)
{
	(void)state;
	run_whole(NULL, SETUP_VMS_MAX, 0);
}

static void test_the_worker_is_found_in_the_build_tree(void **state)
{
	char worker[4096];

	(void)state;
	assert_non_null(getenv("VSOCKD_WORKER"));
	snprintf(worker, sizeof(worker), "%s", getenv("VSOCKD_WORKER"));
	assert_int_equal(unsetenv("VSOCKD_WORKER"), 0);
	run_whole(NULL, 1, 0);
	assert_int_equal(setenv("VSOCKD_WORKER", worker, 1), 0);
}

static void check_status(pid_t pid, const char *line)
{
	char path[64], text[4096] = "";
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	file = fopen(path, "r");
	assert_non_null(file);
	assert_true(fread(text, 1, sizeof(text) - 1, file) > 0);
	fclose(file);
	if (!strstr(text, line))
		fail_msg("\"%s\" is not in %s: %s", line, path, text);
}

static void check_other_namespace(pid_t pid, const char *name)
{
	char path[64], own[64] = "", others[64] = "";

	snprintf(path, sizeof(path), "/proc/%d/ns/%s", pid, name);
	assert_true(readlink(path, others, sizeof(others) - 1) > 0);
	snprintf(path, sizeof(path), "/proc/self/ns/%s", name);
	assert_true(readlink(path, own, sizeof(own) - 1) > 0);
	assert_string_not_equal(own, others);
}

/* That no wall is missing; that each of them holds is tested where walls are tested. */
static void check_confinement(struct setup *setup)
{
	bool is_sanitized = daemon_log_has(&setup->daemon, "built with sanitizers");
	pid_t pids[DAEMON_PIDS_MAX];

	/* Itself, the front, the worker and a spare, which is started behind the guest's back. */
	setup_settle(setup);
	assert_int_equal(daemon_pids(&setup->daemon, pids), 4);
	pids[0] = setup_worker(setup, 0);
	for (size_t i = 0; i < 2; i++) {
		check_status(pids[i], "NoNewPrivs:\t1");
		check_status(pids[i], "CapEff:\t0000000000000000");
		check_status(pids[i], "CapPrm:\t0000000000000000");
		if (!is_sanitized)
			check_status(pids[i], "Seccomp:\t2");
		if (geteuid() != 0)
			continue;
		check_other_namespace(pids[i], "net");
		check_other_namespace(pids[i], "mnt");
		check_other_namespace(pids[i], "user");
	}
	assert_false(daemon_log_has(&setup->daemon, "insecure"));
}

static void test_an_ordinary_user_gets_all_walls(void **state)
{
	struct setup *setup;
	mode_t old;

	(void)state;
	if (geteuid() == 0 && !may_others_run_it())
		skip();
	setup = calloc(1, sizeof(*setup));
	old = umask(0);
	assert_non_null(setup);
	setup_choose_user(setup, NOBODY);
	setup_start(setup, 1, NULL, NULL);
	setup_guest(setup, 0, (struct guest_options){0});
	transfer_all(setup, 0, 1000, 300 * KIB);
	setup_worker(setup, 0);
	check_confinement(setup);
	umask(old);
	setup_stop(setup);
	free(setup);
}

#define IN_HOME(test) cmocka_unit_test_setup_teardown(test, make_home, remove_home)
#define ONE_VM(test)  cmocka_unit_test_setup_teardown(test, setup_start_one, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		IN_HOME(test_a_wrong_value_is_told_in_one_line_and_by_the_exit_code),
		IN_HOME(test_two_vms_may_share_nothing),
		IN_HOME(test_a_file_in_the_way_is_left_alone),
		IN_HOME(test_a_link_and_a_directory_in_the_way_are_left_alone),
		IN_HOME(test_an_unwritable_directory_is_told),
		IN_HOME(test_a_worker_that_is_none_ends_the_start),
		IN_HOME(test_a_stale_socket_is_replaced),
		ONE_VM(test_a_live_socket_is_refused_and_its_owner_not_disturbed),
		IN_HOME(test_a_listening_socket_may_be_handed_over),
		IN_HOME(test_a_connected_socket_may_be_handed_over_and_ends_with_its_session),
		IN_HOME(test_an_fd_that_is_no_unix_socket_is_refused),
		cmocka_unit_test(test_capabilities_help_and_version_are_printed),
		IN_HOME(test_the_log_level_chooses_what_is_said),
		cmocka_unit_test(test_a_file_starts_the_vms_that_stand_in_it),
		IN_HOME(test_what_vhost_device_vsock_documents_starts_and_serves),
		IN_HOME(test_check_config_says_what_would_be_served_and_makes_nothing),
		IN_HOME(test_check_config_finds_what_a_start_would_find),
		cmocka_unit_test(test_several_vms_work_side_by_side),
		cmocka_unit_test(test_the_worker_is_found_in_the_build_tree),
		cmocka_unit_test(test_an_ordinary_user_gets_all_walls),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
