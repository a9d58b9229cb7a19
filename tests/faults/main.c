/* SPDX-License-Identifier: Apache-2.0 */

/*
 *	faults [--all] [--seconds N] [--seed N] [--jobs N] [--only ROLE:CALL:NTH:ERROR]
 *
 * One scenario again and again, and in each run another call of another process fails.
 * A first run without a fault counts the calls. --all: each of them with each error that
 * it can have. Else as many as there is time for: of each place in the programs that
 * makes a call, and each error, one, in an order that is drawn from the seed. --only:
 * one fault once more, with all that is said meanwhile.
 */

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/faults/scenario.h"
#include "tests/frontend/socket.h"

#define ERRORS_MAX  10
#define JOBS_MAX    16
#define RUN_SECONDS 120 /* nothing in a run waits for so long */
#define PROGRESS_MS 60000

#define PLAN_NAME(name) #name,
static const char *const call_names[CALLS] = {PLAN_CALLS(PLAN_NAME)};
static const char *const role_names[ROLES] = {"spawner", "starter", "front", "worker"};

/* What the manual page of each call, and the kernel, have of failures that pass by. */
static const int errors_of[CALLS][ERRORS_MAX] = {
	[CALL_accept4] = {EINTR, EAGAIN, ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM},
	[CALL_bind] = {ENOMEM, EADDRINUSE},
	[CALL_calloc] = {ENOMEM},
	[CALL_chmod] = {ENOMEM},
	[CALL_clone] = {EAGAIN, ENOMEM, ENOSPC},
	[CALL_close] = {EINTR},
	[CALL_connect] = {EINTR, EAGAIN, ENOMEM, ECONNREFUSED},
	[CALL_dup3] = {EINTR, EMFILE},
	[CALL_epoll_create1] = {EMFILE, ENFILE, ENOMEM},
	[CALL_epoll_ctl] = {ENOMEM, ENOSPC},
	[CALL_epoll_wait] = {EINTR},
	[CALL_execveat] = {ENOMEM, EAGAIN, ENFILE},
	[CALL_fcntl] = {EMFILE, EINTR},
	[CALL_flock] = {EINTR, ENOLCK},
	[CALL_fork] = {EAGAIN, ENOMEM},
	[CALL_fstat] = {ENOMEM},
	[CALL_ftruncate] = {EINTR, ENOSPC},
	[CALL_getrandom] = {EINTR},
	[CALL_getsockopt] = {ENOBUFS},
	[CALL_listen] = {ENOBUFS},
	[CALL_lstat] = {ENOMEM},
	[CALL_madvise] = {EAGAIN, ENOMEM},
	[CALL_malloc] = {ENOMEM},
	[CALL_memfd_create] = {EMFILE, ENFILE, ENOMEM},
	[CALL_mmap] = {ENOMEM, EAGAIN},
	[CALL_munmap] = {ENOMEM},
	[CALL_open] = {EINTR, EMFILE, ENFILE, ENOMEM},
	[CALL_pidfd_open] = {EMFILE, ENFILE, ENOMEM},
	[CALL_poll] = {EINTR},
	[CALL_read] = {EINTR, EAGAIN, FAULT_SHORT},
	[CALL_readv] = {EINTR, EAGAIN, ENOMEM, ENOBUFS, FAULT_SHORT},
	[CALL_recv] = {EINTR, ENOMEM},
	[CALL_recvfrom] = {EINTR, EAGAIN, ENOMEM},
	[CALL_recvmsg] = {EINTR, EAGAIN, ENOMEM, ENOBUFS, FAULT_SHORT, FAULT_NO_FDS},
	[CALL_send] = {EINTR, ENOMEM, ENOBUFS},
	[CALL_sendmsg] = {EINTR, EAGAIN, ENOMEM, ENOBUFS, ETOOMANYREFS, FAULT_SHORT},
	[CALL_setsockopt] = {ENOMEM},
	[CALL_shutdown] = {ENOTCONN},
	[CALL_signalfd] = {EMFILE, ENFILE, ENOMEM},
	[CALL_socket] = {EMFILE, ENFILE, ENOBUFS},
	[CALL_socketpair] = {EMFILE, ENFILE, ENOBUFS},
	[CALL_stat] = {ENOMEM},
	[CALL_statx] = {EINTR, ENOMEM},
	[CALL_strdup] = {ENOMEM},
	[CALL_timerfd_create] = {EMFILE, ENFILE, ENOMEM},
	[CALL_timerfd_settime] = {ECANCELED},
	[CALL_unlink] = {ENOMEM},
	[CALL_waitid] = {EINTR},
	[CALL_write] = {EINTR, ENOMEM},
	[CALL_writev] = {EINTR, EAGAIN, ENOMEM, ENOBUFS, FAULT_SHORT},
};

struct injection {
	uint32_t role, call, nth, fault;
};

struct job {
	pid_t pid; /* 0: none */
	struct injection injection;
	struct plan *plan;
	char path[64];
	FILE *output;
};

static struct {
	bool is_all;
	bool has_only;
	struct injection only;
	int seconds; /* 0: until all were tried */
	uint64_t seed, random;
	size_t n_jobs;
	struct job jobs[JOBS_MAX];
	struct injection *todo;
	size_t n_todo;
	size_t n_injected, n_survived, n_disturbed, n_failed, n_missed;
} f = {.seed = 1, .n_jobs = 3};

static volatile sig_atomic_t is_to_end;

static uint32_t draw(uint32_t n)
{
	f.random = f.random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(f.random >> 33) % n;
}

static const char *error_name(uint32_t fault)
{
	if (fault == FAULT_SHORT)
		return "short";
	if (fault == FAULT_NO_FDS)
		return "no-fds";
	return fault == 0 ? "none" : strerrorname_np((int)fault);
}

static void print_injection(FILE *file, const struct injection *injection)
{
	fprintf(file, "%s:%s:%u:%s", role_names[injection->role], call_names[injection->call],
		injection->nth, error_name(injection->fault));
}

/* ---- a run, in a process of its own ---- */

/* What a run found out; more than its exit status can say goes to its output. */
enum { RUN_GOOD, RUN_FAILED, RUN_DISTURBED };

static struct plan *run_plan;
static bool was_disturbed;

static void test_a_fault_stays_where_it_was(void **state)
{
	(void)state;
	was_disturbed = scenario_run(run_plan);
}

static _Noreturn void run(const struct job *job)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_fault_stays_where_it_was)};
	int output = fileno(job->output);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGTERM, SIG_DFL);
	alarm(RUN_SECONDS);
	if (!f.has_only) {
		dup2(output, STDOUT_FILENO);
		dup2(output, STDERR_FILENO);
	}
	setenv(PLAN_VARIABLE, job->path, 1);
	run_plan = job->plan;
	if (cmocka_run_group_tests(tests, NULL, NULL) != 0) {
		scenario_give_up();
		exit(RUN_FAILED);
	}
	exit(was_disturbed ? RUN_DISTURBED : RUN_GOOD);
}

/* Workers have other users. */
static void make_plan(struct job *job, const char *base, size_t index)
{
	int fd;

	snprintf(job->path, sizeof(job->path), "%s/vsockd-plan-%d-%zu", base, (int)getpid(), index);
	fd = open(job->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (fd < 0 || fchmod(fd, 0666) < 0 || ftruncate(fd, sizeof(*job->plan)) < 0) {
		perror(job->path);
		exit(EX_OSERR);
	}
	job->plan = mmap(NULL, sizeof(*job->plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (job->plan == MAP_FAILED) {
		perror("mmap");
		exit(EX_OSERR);
	}
}

static void begin(struct job *job, struct injection injection)
{
	memset(job->plan, 0, offsetof(struct plan, sites));
	job->injection = injection;
	job->plan->role = injection.role;
	job->plan->call = injection.call;
	job->plan->nth = injection.nth;
	job->plan->fault = injection.fault;
	job->output = tmpfile();
	fflush(NULL);
	job->pid = fork();
	if (job->pid == 0)
		run(job);
	if (job->pid < 0 || !job->output) {
		perror("fork");
		exit(EX_OSERR);
	}
}

static void show_output(FILE *output)
{
	char line[1024];

	rewind(output);
	while (fgets(line, sizeof(line), output))
		printf("    %s", line);
}

static void end(struct job *job, int status)
{
	bool has_failed = !WIFEXITED(status) || WEXITSTATUS(status) == RUN_FAILED;
	uint32_t n = atomic_load(&job->plan->n_injected);

	job->pid = 0;
	f.n_injected += n > 0;
	f.n_missed += n == 0 && job->injection.fault != 0;
	if (has_failed) {
		f.n_failed++;
		printf("FAILED: ");
		print_injection(stdout, &job->injection);
		printf(" (%s, from 0x%x)\n",
		       job->plan->injected_phase == PHASE_START ? "starting" : "serving",
		       atomic_load(&job->plan->injected_site));
		show_output(job->output);
	} else if (n > 0) {
		f.n_survived++;
		f.n_disturbed += WEXITSTATUS(status) == RUN_DISTURBED;
	}
	fclose(job->output);
	fflush(stdout);
}

static struct job *find_job(pid_t pid)
{
	for (size_t i = 0; i < f.n_jobs; i++)
		if (f.jobs[i].pid == pid)
			return &f.jobs[i];
	return NULL;
}

static void await_one(void)
{
	int status;
	pid_t pid = wait(&status);
	struct job *job = pid > 0 ? find_job(pid) : NULL;

	if (job)
		end(job, status);
}

/* ---- which calls are to fail ---- */

static void add(uint32_t role, uint32_t call, uint32_t nth, uint32_t fault)
{
	if (f.n_todo % 4096 == 0)
		f.todo = realloc(f.todo, (f.n_todo + 4096) * sizeof(*f.todo));
	if (!f.todo)
		exit(EX_OSERR);
	f.todo[f.n_todo++] = (struct injection){role, call, nth, fault};
}

static void add_all(const struct plan *plan, uint32_t role, uint32_t call)
{
	uint32_t n = plan->counts[role][call];

	for (size_t i = 0; i < ERRORS_MAX && errors_of[call][i]; i++)
		for (uint32_t nth = 1; nth <= n; nth++)
			add(role, call, nth, (uint32_t)errors_of[call][i]);
}

/* One of the calls that come from there. */
static uint32_t draw_of_site(const uint32_t *sites, uint32_t n, uint32_t site)
{
	uint32_t n_of_site = 0, chosen;

	for (uint32_t i = 0; i < n; i++)
		n_of_site += sites[i] == site;
	chosen = draw(n_of_site);
	for (uint32_t i = 0; i < n; i++)
		if (sites[i] == site && chosen-- == 0)
			return i + 1;
	return 1;
}

static bool is_first(const uint32_t *sites, uint32_t at)
{
	for (uint32_t i = 0; i < at; i++)
		if (sites[i] == sites[at])
			return false;
	return true;
}

static void add_some(const struct plan *plan, uint32_t role, uint32_t call)
{
	uint32_t n = plan->counts[role][call];

	for (uint32_t at = 0; at < n && at < PLAN_SITES_MAX; at++) {
		const uint32_t *sites = plan->sites[role][call];

		if (!is_first(sites, at))
			continue;
		for (size_t i = 0; i < ERRORS_MAX && errors_of[call][i]; i++)
			add(role, call, draw_of_site(sites, n, sites[at]),
			    (uint32_t)errors_of[call][i]);
	}
}

static void shuffle(void)
{
	for (size_t i = f.n_todo; i > 1; i--) {
		size_t other = draw((uint32_t)i);
		struct injection kept = f.todo[i - 1];

		f.todo[i - 1] = f.todo[other];
		f.todo[other] = kept;
	}
}

static bool plan_all(void)
{
	struct job *job = &f.jobs[0];
	size_t n_calls = 0;

	begin(job, (struct injection){0});
	await_one();
	if (f.n_failed > 0)
		return false;
	for (uint32_t role = 0; role < ROLES; role++) {
		for (uint32_t call = 0; call < CALLS; call++) {
			n_calls += job->plan->counts[role][call];
			if (f.is_all)
				add_all(job->plan, role, call);
			else
				add_some(job->plan, role, call);
		}
	}
	shuffle();
	printf("seed %llu: %zu calls, %zu faults to choose from\n", (unsigned long long)f.seed,
	       n_calls, f.n_todo);
	return true;
}

static void end_early(int signal)
{
	(void)signal;
	is_to_end = 1;
}

static void run_all(void)
{
	int64_t deadline = deadline_in(f.seconds * 1000);
	int64_t next_progress = deadline_in(PROGRESS_MS);
	size_t n = 0;

	signal(SIGTERM, end_early);
	while (n < f.n_todo && !is_to_end && (f.seconds == 0 || deadline_left(deadline) > 0)) {
		struct job *job = find_job(0);

		if (job)
			begin(job, f.todo[n++]);
		else
			await_one();
		if (deadline_left(next_progress) > 0)
			continue;
		next_progress = deadline_in(PROGRESS_MS);
		printf("%zu of %zu tried\n", n, f.n_todo);
		fflush(stdout);
	}
	while (waitid(P_ALL, 0, &(siginfo_t){0}, WEXITED | WNOWAIT) == 0)
		await_one();
}

/* ---- the command line ---- */

static bool parse_only(char *text)
{
	char *role = strtok(text, ":"), *call = strtok(NULL, ":"), *nth = strtok(NULL, ":"),
	     *error = strtok(NULL, ":");

	if (!role || !call || !nth || !error)
		return false;
	f.only = (struct injection){ROLES, CALLS, (uint32_t)strtoul(nth, NULL, 10), 0};
	for (uint32_t i = 0; i < ROLES; i++)
		if (strcmp(role_names[i], role) == 0)
			f.only.role = i;
	for (uint32_t i = 0; i < CALLS; i++)
		if (strcmp(call_names[i], call) == 0)
			f.only.call = i;
	for (uint32_t i = 1; i <= FAULT_NO_FDS; i++)
		if ((i < 200 || i >= FAULT_SHORT) && error_name(i) &&
		    strcmp(error_name(i), error) == 0)
			f.only.fault = i;
	f.has_only = true;
	return f.only.role < ROLES && f.only.call < CALLS && f.only.nth > 0 && f.only.fault > 0;
}

static bool parse(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		char *value = i + 1 < argc ? argv[i + 1] : NULL;

		if (strcmp(argv[i], "--all") == 0) {
			f.is_all = true;
			continue;
		}
		if (!value)
			return false;
		if (strcmp(argv[i], "--seconds") == 0)
			f.seconds = atoi(value);
		else if (strcmp(argv[i], "--seed") == 0)
			f.seed = strtoull(value, NULL, 0);
		else if (strcmp(argv[i], "--jobs") == 0)
			f.n_jobs = strtoul(value, NULL, 10);
		else if (strcmp(argv[i], "--only") != 0 || !parse_only(value))
			return false;
		i++;
	}
	if (f.seconds == 0 && !f.is_all)
		f.seconds = 60;
	return f.n_jobs > 0 && f.n_jobs <= JOBS_MAX;
}

static void run_only(void)
{
	begin(&f.jobs[0], f.only);
	await_one();
}

int main(int argc, char **argv)
{
	const char *base = getenv("TMPDIR");

	if (!parse(argc, argv)) {
		fprintf(stderr, "usage: faults [--all] [--seconds N] [--seed N] [--jobs N]\n"
				"              [--only ROLE:CALL:NTH:ERROR]\n");
		return EX_USAGE;
	}
	f.random = f.seed * UINT64_C(0x9e3779b97f4a7c15);
	for (size_t i = 0; i < f.n_jobs; i++)
		make_plan(&f.jobs[i], base && strlen(base) < 32 ? base : "/tmp", i);
	if (f.has_only)
		run_only();
	else if (plan_all())
		run_all();
	for (size_t i = 0; i < f.n_jobs; i++)
		unlink(f.jobs[i].path);
	printf("%zu faults injected, %zu survived (%zu of them felt by the VM that they struck)\n",
	       f.n_injected, f.n_survived, f.n_disturbed);
	if (f.n_missed > 0)
		printf("%zu calls did not come this time\n", f.n_missed);
	printf("%zu passed, %zu failed\n", f.n_survived, f.n_failed);
	return f.n_failed > 0;
}
