/* SPDX-License-Identifier: Apache-2.0 */

/*
 *	chaos [--minutes N] [--seed S]
 *
 * The built programs, with VMs that are never left in peace, see vm.h. This process is the
 * service manager and the operator of vsockd; from time to time it brings all to rest and
 * looks whether anything was left behind. $VSOCKD, $VSOCKD_WORKER and $VSOCKCTL are run.
 *
 * SIGTERM ends it early: with all that is looked at in the end.
 *
 * The seed decides what each process does, in its order; how the processes' turns fall in
 * time is not in it.
 */

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/chaos/rest.h"
#include "tests/chaos/shared.h"
#include "tests/chaos/vm.h"
#include "tests/frontend/socket.h"
#include "tests/integration/manager.h"
#include "tests/integration/tool.h"

#define PROGRESS_MS 10000
#define REST_MS	    15000
#define RESTART_MS  40000
#define LOG_SHOWN   20000

static struct {
	struct manager *manager;
	struct dice dice;
	int64_t ends_at, next_progress, next_rest, next_restart, next_kill;
	struct tool tool;
} c;

static volatile sig_atomic_t is_to_end;

/* ---- a wait, in which the others are looked after ---- */

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		size_t vm = 0;

		while (vm < VMS && shared->vms[vm].pid != pid)
			vm++;
		/* One that passed its front-end on is nobody any more. */
		if (vm < VMS && !shared->is_over)
			tell_failure("the process of VM %zu ended with status 0x%x", vm,
				     (unsigned int)status);
	}
}

static void print_progress(void)
{
	uint64_t n = 0;

	if (now_ms() < c.next_progress)
		return;
	c.next_progress = now_ms() + PROGRESS_MS;
	for (size_t i = 0; i < OPERATIONS; i++)
		n += shared->n_operations[i];
	printf("%4lld s: %" PRIu64 " operations, %" PRIu64 " ends of connections, %" PRIu64
	       " of them reset, %" PRIu64 " MiB; bystander: %.1f ms at worst\n",
	       (long long)(now_ms() - shared->began_at) / 1000, n, shared->n_opened,
	       shared->n_reset, shared->n_bytes >> 20,
	       (double)atomic_exchange(&shared->worst_since_ns, 0) / 1e6);
	fflush(stdout);
}

/* What has failed is told from here, where nothing more can be trusted. */
static jmp_buf failed;

void look_after(int milliseconds)
{
	int64_t until = now_ms() + milliseconds;

	do {
		while (manager_hear(c.manager, 0))
			;
		reap();
		print_progress();
		if (shared->has_failed)
			longjmp(failed, 1);
		poll(NULL, 0, 2);
	} while (now_ms() < until);
}

static void begin_wait(int64_t *ret_deadline)
{
	*ret_deadline = now_ms() + 2 * LIMIT;
}

static void wait_more(int64_t deadline, const char *what)
{
	look_after(1);
	if (now_ms() < deadline)
		return;
	tell_failure("%s", what);
}

/* ---- vsockd ---- */

static void write_file(size_t n_vms)
{
	char text[2048] = "control: @/" TOOL_CONTROL "\nvms:\n";

	for (size_t i = 0; i < n_vms; i++)
		snprintf(text + strlen(text), sizeof(text) - strlen(text),
			 "- {guest-cid: %u, socket: @/vm%zu, uds-path: @/host%zu, groups: all}\n",
			 (unsigned int)vm_cid(i), i, i);
	manager_write_file(c.manager, text);
}

static void start(void)
{
	const char *arguments[] = {"",
				   "--config",
				   "@/vsockd.yaml",
				   "--worker",
				   getenv("VSOCKD_WORKER"),
				   "--log-level",
				   "debug",
				   NULL};

	manager_start_with(c.manager, arguments);
	manager_await(c.manager, "READY");
}

static bool has_exited(pid_t pid)
{
	siginfo_t info = {0};

	return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
	       info.si_pid == pid;
}

/* What it writes fits into its pipes. */
static int run_tool(const char *first, const char *second)
{
	int64_t deadline = now_ms() + LIMIT;
	char path[128];

	snprintf(path, sizeof(path), "%s/" TOOL_CONTROL, shared->directory);
	tool_start(&c.tool, path, (const char *const[]){first, second, NULL});
	while (!has_exited(c.tool.pid) && now_ms() < deadline)
		poll(NULL, 0, 2);
	if (!has_exited(c.tool.pid)) {
		tell_failure("vsockctl %s %s does not come back", first, second ? second : "");
		kill(c.tool.pid, SIGKILL);
	}
	return tool_end(&c.tool);
}

static void operate(const char *first, const char *second)
{
	int code = run_tool(first, second);

	if (code == 0)
		return;
	tell_failure("vsockctl %s %s: %d: %s", first, second ? second : "", code, c.tool.complaint);
	look_after(0);
}

/* ---- rest ---- */

static uint64_t count_opened(bool *ret_is_idle)
{
	uint64_t n = 0;

	*ret_is_idle = true;
	for (size_t i = 0; i < VMS; i++) {
		*ret_is_idle &= shared->vms[i].n_ends == 0;
		n += shared->vms[i].n_opened;
	}
	return n;
}

/* Nobody opens anything any more, and what was opened is over: seen twice, with nothing between. */
static void wait_for_the_last_connection(void)
{
	bool was_idle, is_idle = false;
	uint64_t before, now = 0;
	int64_t deadline;

	begin_wait(&deadline);
	do {
		was_idle = is_idle;
		before = now;
		wait_more(deadline, "connections do not come to an end");
		look_after(20);
		now = count_opened(&is_idle);
	} while (!was_idle || !is_idle || now != before);
}

static void wait_gone(size_t first, size_t n, bool is_gone)
{
	int64_t deadline;

	begin_wait(&deadline);
	for (size_t i = first; i < first + n; i++)
		while (shared->vms[i].is_gone != is_gone)
			wait_more(deadline, "a VM does not come to rest");
}

/* Served again: what is killed now is not what it begins with. */
static void wait_bystander(void)
{
	uint64_t n = shared->n_round_trips;
	int64_t deadline;

	begin_wait(&deadline);
	while (shared->n_round_trips == n)
		wait_more(deadline, "the bystander is not served again");
}

static void leave(void)
{
	note(VMS, OP_REST);
	for (size_t i = 0; i < VMS; i++)
		shared->vms[i].is_to_rest = true;
	wait_for_the_last_connection();
	for (size_t i = 0; i < VMS; i++)
		shared->vms[i].is_to_leave = true;
	wait_gone(0, VMS, true);
	rest_check(&c.manager->daemon);
	note_end(VMS, OP_REST);
}

static void bring_to_rest(void)
{
	leave();
	for (size_t i = 0; i < VMS; i++)
		shared->vms[i].is_to_rest = shared->vms[i].is_to_leave = false;
	wait_bystander();
}

/* The bystander's VMM leaves before, as an administrator sees to it; the others are surprised. */
static void restart(void)
{
	note(VMS, OP_RESTART);
	shared->vms[BYSTANDER].is_to_rest = true;
	while (shared->vms[BYSTANDER].n_ends > 0)
		look_after(5);
	shared->vms[BYSTANDER].is_to_leave = true;
	wait_gone(BYSTANDER, 1, true);
	for (size_t i = 1; i < VMS; i++) {
		fault_begin(i);
		shared->vms[i].is_down = true;
	}
	manager_end(c.manager);
	start();
	wait_gone(1, VMS - 1, true);
	for (size_t i = 1; i < VMS; i++)
		shared->vms[i].is_down = false;
	shared->vms[BYSTANDER].is_to_rest = shared->vms[BYSTANDER].is_to_leave = false;
	note_end(VMS, OP_RESTART);
	wait_bystander();
}

/* ---- the operator ---- */

static bool find_worker(const char *text, size_t vm, pid_t *ret)
{
	char name[32];
	const char *at;

	snprintf(name, sizeof(name), "\"cid\": %u,", (unsigned int)vm_cid(vm));
	at = strstr(text, name);
	at = at ? strstr(at, "\"worker_pid\": ") : NULL;
	return at && sscanf(at, "\"worker_pid\": %d", ret) == 1;
}

static void kill_worker(pid_t pid)
{
	shared->n_kills += kill(pid, SIGKILL) == 0;
}

/* A worker, a successor or a spare; nobody may lose the bystander's. */
static void kill_any(void)
{
	pid_t pids[DAEMON_PIDS_MAX], victim, bystander = 0;
	size_t n;

	if (now_ms() < c.next_kill)
		return;
	c.next_kill = now_ms() + 5000 + draw(&c.dice, 10000);
	operate("--json", "status");
	if (!find_worker(c.tool.text, BYSTANDER, &bystander))
		return;
	n = daemon_find(&c.manager->daemon, "vsockd-worker", pids);
	victim = n > 0 ? pids[draw(&c.dice, (uint32_t)n)] : 0;
	for (size_t i = 1; i < VMS; i++)
		if (shared->vms[i].n_kills >= KILLS_MAX)
			return;
	if (victim == 0 || victim == bystander)
		return;
	note(VMS, OP_KILL_ANY_WORKER);
	/* Whose it is may have changed since. */
	for (size_t i = 1; i < VMS; i++) {
		fault_begin(i);
		shared->vms[i].n_kills++;
	}
	kill_worker(victim);
	for (size_t i = 1; i < VMS; i++)
		fault_end(i);
}

static void replace_all(void)
{
	note(VMS, OP_REPLACE_ALL);
	/* One that dies, or leaves, meanwhile is not replaced, and that is said. */
	(void)run_tool("replace", "all");
	note_end(VMS, OP_REPLACE_ALL);
}

static void change_log_level(void)
{
	static const char *const levels[] = {"warning", "notice", "info", "info", "debug"};

	note(VMS, OP_LOG_LEVEL);
	operate("log-level", levels[draw(&c.dice, 5)]);
}

static void look(void)
{
	static const char *const commands[] = {"status", "connections", "metrics"};

	note(VMS, OP_LOOK);
	operate(commands[draw(&c.dice, 3)], NULL);
}

static void remove_and_add(void)
{
	note(VMS, OP_REMOVE_AND_ADD);
	fault_begin(GUEST_OF_RELOADS);
	write_file(GUEST_OF_RELOADS);
	operate("reload", NULL);
	look_after((int)draw(&c.dice, 500));
	write_file(VMS);
	operate("reload", NULL);
	note_end(VMS, OP_REMOVE_AND_ADD);
}

static void do_something(void)
{
	switch (draw(&c.dice, 8)) {
	case 0:
		change_log_level();
		return;
	case 1:
	case 2:
		look();
		return;
	case 3:
		note(VMS, OP_RELOAD);
		operate("reload", NULL);
		return;
	case 4:
		remove_and_add();
		return;
	case 5:
		kill_any();
		return;
	default:
		replace_all();
	}
}

/* ---- from beginning to end ---- */

/* Nobody else may keep a socket that vsockd gave up: those in its backlog would wait for ever. */
static _Noreturn void be_vm(size_t number)
{
	for (size_t i = 0; i < c.manager->n_stored; i++)
		close(c.manager->fds[i]);
	vm_run(number);
}

static void start_vms(void)
{
	for (size_t i = 0; i < VMS; i++) {
		pid_t pid;

		if (i != BYSTANDER)
			fault_begin(i);
		pid = fork();
		if (pid == 0)
			be_vm(i);
		shared->vms[i].pid = pid;
	}
}

static void run(void)
{
	c.next_rest = now_ms() + REST_MS;
	c.next_restart = now_ms() + RESTART_MS / 2;
	while (now_ms() < c.ends_at && !is_to_end) {
		look_after((int)draw(&c.dice, 800));
		if (now_ms() >= c.next_restart) {
			restart();
			c.next_restart = now_ms() + RESTART_MS;
		} else if (now_ms() >= c.next_rest) {
			bring_to_rest();
			c.next_rest = now_ms() + REST_MS;
		} else {
			do_something();
		}
	}
	leave();
	shared->is_over = true;
}

/* What the log must not have, whatever was done. NULL: it has not. */
static const char *judge_log(void)
{
	static const char *const never[] = {
		"is not believed", "does not answer", "ended with exit code",
		"device failed",   "Sanitizer",	      "runtime error:"};
	struct daemon *daemon = &c.manager->daemon;

	for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++)
		if (daemon_log_has(daemon, never[i]))
			return never[i];
	if (daemon_count_log(daemon, "ended by signal") !=
	    daemon_count_log(daemon, "ended by signal 9"))
		return "ended by signal";
	return daemon_count_log(daemon, "ended by signal") > shared->n_kills ? "ended by signal 9"
									     : NULL;
}

static void show_log(void)
{
	FILE *log = fopen(daemon_path(&c.manager->daemon, "log"), "re");
	int byte;

	if (!log)
		return;
	if (fseek(log, -LOG_SHOWN, SEEK_END) < 0)
		rewind(log);
	while ((byte = getc(log)) != EOF)
		putchar(byte);
	fclose(log);
}

static void show_last_operations(size_t vm)
{
	const struct shared_vm *place = &shared->vms[vm];
	uint32_t n = place->n_done;

	printf("    %s %zu:", vm == VMS ? "operator" : "VM", vm);
	for (uint32_t i = n > REMEMBERED ? n - REMEMBERED : 0; i < n; i++) {
		const struct done *done = &place->done[i % REMEMBERED];
		int operation = done->operation;

		printf(" %.3f %s%s;", (double)done->at / 1000, operation < 0 ? "end of " : "",
		       operation_names[operation < 0 ? -1 - operation : operation]);
	}
	printf("\n");
}

static void show_state(void)
{
	char cid[8];

	for (size_t i = 0; i < VMS && c.manager->daemon.pid > 0; i++) {
		snprintf(cid, sizeof(cid), "%zu", (size_t)vm_cid(i));
		(void)run_tool("show", cid);
		printf("%s%s", c.tool.text, c.tool.complaint);
		(void)run_tool("connections", cid);
		printf("%s%s", c.tool.text, c.tool.complaint);
	}
}

static void show_failure(void)
{
	while (!shared->is_told)
		poll(NULL, 0, 1);
	printf("not ok - seed %" PRIu64 ", at %.3f s: %s\n", shared->seed,
	       (double)shared->failed_at / 1000, shared->failure);
	for (size_t i = 0; i <= VMS; i++)
		show_last_operations(i);
	show_state();
	printf("    vsockd said last:\n");
	show_log();
}

static void show_summary(void)
{
	printf("seed %" PRIu64 ", %lld s:", shared->seed,
	       (long long)(now_ms() - shared->began_at) / 1000);
	for (size_t i = 0; i < OPERATIONS; i++)
		printf("%s %s %" PRIu64, i ? "," : "", operation_names[i], shared->n_operations[i]);
	printf("\nok - no byte was wrong, lost, or came twice: %" PRIu64 " bytes, %" PRIu64
	       " messages\n",
	       shared->n_bytes, shared->n_messages);
	printf("ok - each end of a connection ended, or lived: %" PRIu64 " opened, %" PRIu64
	       " ended in order, %" PRIu64 " reset by what was done; the machine was slow %" PRIu64
	       " times\n",
	       shared->n_opened, shared->n_ended, shared->n_reset, shared->n_slow);
	printf("ok - no process and no fd was left at rest: %" PRIu64 " times, %s\n",
	       shared->n_operations[OP_REST], rest_says());
	printf("ok - the bystander lost nothing: %" PRIu64 " round trips, %.1f ms at worst\n",
	       shared->n_round_trips, (double)shared->worst_ns / 1e6);
	printf("ok - no process of vsockd died but %" PRIu64 " workers that were killed\n",
	       shared->n_kills);
}

static void kill_vms(void)
{
	for (size_t i = 0; i < VMS; i++)
		if (shared->vms[i].pid > 0)
			kill(shared->vms[i].pid, SIGKILL);
}

static void finish(void)
{
	const char *found;

	look_after(100);
	manager_end(c.manager);
	found = judge_log();
	if (!found)
		return;
	tell_failure("the log has \"%s\"", found);
}

static void end_early(int signal)
{
	(void)signal;
	is_to_end = 1;
}

static bool parse(int argc, char **argv, int64_t *ret_ms, uint64_t *ret_seed)
{
	*ret_ms = 60000;
	*ret_seed = (uint64_t)now_ms() + (uint64_t)getpid();
	for (int i = 1; i + 1 < argc; i += 2) {
		if (strcmp(argv[i], "--minutes") == 0)
			*ret_ms = (int64_t)(strtod(argv[i + 1], NULL) * 60000);
		else if (strcmp(argv[i], "--seed") == 0)
			*ret_seed = strtoull(argv[i + 1], NULL, 0);
		else
			return false;
	}
	return argc % 2 == 1;
}

int main(int argc, char **argv)
{
	int64_t ms;
	uint64_t seed;
	void *manager;

	if (!parse(argc, argv, &ms, &seed)) {
		fprintf(stderr, "usage: chaos [--minutes N] [--seed S]\n");
		return EX_USAGE;
	}
	if (shared_init(seed) < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1) < 0 ||
	    manager_set_up(&manager) != 0)
		return EX_OSERR;
	c.manager = manager;
	c.dice = dice_of(seed, VMS);
	c.ends_at = now_ms() + ms;
	c.next_progress = now_ms() + PROGRESS_MS;
	snprintf(shared->directory, sizeof(shared->directory), "%s", c.manager->daemon.directory);
	printf("seed %" PRIu64 "\n", seed);
	sigaction(SIGTERM, &(struct sigaction){.sa_handler = end_early, .sa_flags = SA_RESTART},
		  NULL);
	write_file(VMS);
	start();
	if (setjmp(failed) == 0) {
		rest_begin(&c.manager->daemon);
		start_vms();
		run();
		finish();
	}
	if (shared->has_failed) {
		show_failure();
		kill_vms();
		printf("0 passed, 1 failed\n");
		return 1;
	}
	show_summary();
	if (manager_tear_down(&manager) != 0) {
		printf("not ok - vsockd does not end well\n5 passed, 1 failed\n");
		return 1;
	}
	printf("5 passed, 0 failed\n");
	return 0;
}
