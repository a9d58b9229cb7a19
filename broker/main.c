/* SPDX-License-Identifier: Apache-2.0 */

/*
 * vsockd: reads the command line, opens what is named there, forks the front
 * and becomes the spawner. Order matters: --user comes before the VMs' paths are
 * looked at, sockets are bound while this process may still do so, and the front is
 * forked before anything from outside is read.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sysexits.h>
#include <unistd.h>

#include "broker/configuration.h"
#include "broker/exporter.h"
#include "broker/front.h"
#include "broker/log.h"
#include "broker/reload.h"
#include "broker/service.h"
#include "broker/sockets.h"
#include "broker/spawner.h"
#include "policy/start.h"

/*
 * Sanitizer builds only: an answer to the run-time's question. Leaks cannot be
 * looked for from behind the walls; the front allocates before it goes there.
 */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0";
}

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

/* A program to start: the file as it is now, and where another one may be later. */
struct program {
	int fd; /* -1: it was not found */
	char path[4096];
};

static void open_at(const char *directory, const char *below, struct program *ret)
{
	const char *between = *directory ? "/" : "";

	ret->fd = -1;
	if ((size_t)snprintf(ret->path, sizeof(ret->path), "%s%s%s", directory, between, below) <
	    sizeof(ret->path))
		ret->fd = open(ret->path, O_PATH | O_CLOEXEC);
}

/* Installed: in libexecdir. Not installed: where meson builds it. */
static bool open_beside(const char *installed, const char *built, const char *advice,
			struct program *ret)
{
	char program[4096];
	ssize_t len;

	len = readlink("/proc/self/exe", program, sizeof(program) - 1);
	if (len <= 0) {
		log_event(LOG_ERR, LOG_NO_VM, "/proc/self/exe: %s: is /proc mounted?",
			  strerror(errno));
		return false;
	}
	program[len] = '\0';
	*strrchr(program, '/') = '\0';
	if (strcmp(program, VSOCKD_SBINDIR) == 0)
		open_at(VSOCKD_LIBEXECDIR, strrchr(installed, '/') + 1, ret);
	else
		open_at(program, built, ret);
	if (ret->fd < 0)
		open_at(program, installed, ret);
	if (ret->fd < 0)
		log_event(LOG_ERR, LOG_NO_VM, "%s not found beside %s: %s",
			  strrchr(installed, '/') + 1, program, advice);
	return ret->fd >= 0;
}

static bool open_worker(const struct configuration *configuration, struct program *ret)
{
	if (!configuration->worker)
		return open_beside("../libexec/vsockd-worker", "../worker/vsockd-worker",
				   "install it, or name it with --worker", ret);
	open_at("", configuration->worker, ret);
	if (ret->fd < 0)
		log_event(LOG_ERR, LOG_NO_VM, "--worker %s: %s", configuration->worker,
			  strerror(errno));
	return ret->fd >= 0;
}

/* true without a file if none is needed. */
static bool open_exporter(const struct configuration *configuration, struct program *ret)
{
	ret->fd = -1;
	return configuration->metrics_http.family != PORT_TCP ||
	       open_beside("../libexec/vsockd-exporter", "../exporter/vsockd-exporter",
			   "install it, or leave metrics-http out", ret);
}

/*
 * The front keeps a socket for each connection and the worker another one. A
 * hard limit below that is told by whoever needs the files. A configuration that
 * may grow gets as many as the host allows.
 */
static uint64_t raise_file_limit(const struct configuration *configuration)
{
	uint64_t needed = configuration_n_files(configuration);
	uint64_t wanted = configuration->file ? CONFIGURATION_FILES_MAX : needed;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return needed;
	if (wanted > limit.rlim_max)
		wanted = limit.rlim_max < needed ? needed : limit.rlim_max;
	if (limit.rlim_cur < wanted) {
		limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
	return wanted;
}

/* As short as Linux makes them. */
#define TURN_NS 100000

/*
 * All its processes wait for others, do little, and let somebody wait meanwhile. Kernels from
 * 6.12 on let who asks for short turns have them sooner, and no more of the processor; older
 * ones pay no heed.
 */
static void ask_for_short_turns(void)
{
	struct sched_attr turns = {0};

	/* Niceness stays, and so does a real-time policy that somebody chose. */
	if (syscall(SYS_sched_getattr, 0, &turns, SCHED_ATTR_SIZE_VER0, 0) < 0 ||
	    turns.sched_policy != SCHED_NORMAL)
		return;
	turns.sched_runtime = TURN_NS;
	(void)syscall(SYS_sched_setattr, 0, &turns, 0);
}

static void log_missing_walls(const struct configuration *configuration)
{
	if (configuration->insecure & POLICY_INSECURE_NO_NAMESPACES)
		log_event(LOG_WARNING, LOG_NO_VM,
			  "--insecure-no-namespaces: workers and front see files and network");
	if (configuration->insecure & POLICY_INSECURE_NO_SECCOMP)
		log_event(LOG_WARNING, LOG_NO_VM,
			  "--insecure-no-seccomp: workers and front may make any system call");
	if (!policy_has_filter)
		log_event(LOG_WARNING, LOG_NO_VM,
			  "built with sanitizers, for tests: without system-call filter");
}

struct running {
	struct configuration *configuration;
	struct sockets sockets;
	struct reload *reload; /* NULL: there is no file to read again */
	uint64_t n_files;      /* that the front may open */
	struct program worker, exporter;
};

/* An exporter does not wait any longer for the front to say more. */
#define EXPORTER_WAIT_S 5

/* Both ends are -1 where no exporter asks for anything. */
static bool make_export_pair(const struct configuration *configuration, int ret_pair[2])
{
	const struct timeval limit = {.tv_sec = EXPORTER_WAIT_S};

	ret_pair[0] = ret_pair[1] = -1;
	return configuration->metrics_http.family != PORT_TCP ||
	       (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ret_pair) == 0 &&
		setsockopt(ret_pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) == 0);
}

static int run_front(const struct running *running, int spawner, int exporter)
{
	struct front_setup setup = {
		.configuration = running->configuration,
		.sockets = &running->sockets,
		.banks = running->reload ? &running->reload->banks : NULL,
		.n_files = running->n_files,
		.spawner = spawner,
		.exporter = exporter,
	};

	log_settle();
	return front_run(&setup);
}

static int run_processes(struct running *running)
{
	struct spawner_setup setup = {
		.configuration = running->configuration,
		.worker_program = running->worker.fd,
		.worker_path = running->worker.path,
		.reload = running->reload,
	};
	struct policy_failure failure;
	struct exporter_setup exporter;
	struct policy_process front;
	int pair[2], export_pair[2], r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0 ||
	    !make_export_pair(running->configuration, export_pair)) {
		log_event(LOG_ERR, LOG_NO_VM, "socketpair: %s", strerror(errno));
		return EX_OSERR;
	}
	r = policy_fork_front(running->configuration->insecure, &front, &failure);
	if (r < 0) {
		log_event(LOG_ERR, LOG_NO_VM, "%s", failure.text);
		return EX_OSERR;
	}
	if (r == POLICY_IS_FRONT) {
		close(pair[0]);
		close(running->worker.fd);
		close_if_open(running->exporter.fd);
		close_if_open(export_pair[0]);
		listener_close(&running->sockets.http);
		_exit(run_front(running, pair[1], export_pair[1]));
	}
	close(pair[1]);
	close_if_open(export_pair[1]);
	sockets_close(&running->sockets);
	exporter = (struct exporter_setup){
		.program = running->exporter.fd,
		.channel = export_pair[0],
		.listener = running->sockets.http.fd,
	};
	if (exporter.program >= 0)
		setup.exporter = &exporter;
	setup.front_channel = pair[0];
	setup.front_pidfd = front.pidfd;
	return spawner_run(&setup);
}

/* Before any path of a VM is looked at or made: that other user is to do it. */
static int become_user(const struct configuration *configuration)
{
	struct policy_failure failure;

	if (!configuration->has_user || configuration->user == geteuid())
		return 0;
	if (policy_become_user(configuration->user, configuration->group, &failure)) {
		fprintf(stderr, "vsockd: --user: %s\n", failure.text);
		return EX_NOPERM;
	}
	return 0;
}

/*
 * Everything that can be looked at without making anything. Who may not become
 * the user of the file cannot tell what that user may do.
 */
static int check(const struct configuration *configuration)
{
	bool is_that_user = !configuration->has_user || configuration->user == geteuid();
	struct configuration_error error;
	struct program worker, exporter;
	uint64_t buffer_size;
	int r;

	log_open(configuration->log_level);
	if (!open_worker(configuration, &worker) || !open_exporter(configuration, &exporter))
		return EX_CONFIG;
	close(worker.fd);
	close_if_open(exporter.fd);
	if (spawner_buffer_size(configuration, &buffer_size) < 0) {
		fprintf(stderr, "vsockd: max-connections times tx-buffer-size is too large\n");
		return EX_CONFIG;
	}
	if (is_that_user || geteuid() == 0) {
		r = become_user(configuration);
		if (r != 0)
			return r;
		if (configuration_check_paths(configuration, &error) != 0) {
			fprintf(stderr, "vsockd: %s\n", error.text);
			return EX_CONFIG;
		}
	}
	configuration_print(stdout, configuration);
	if (!is_that_user && geteuid() != configuration->user)
		printf("paths: not looked at, only root and user %u can tell\n",
		       (unsigned int)configuration->user);
	return EX_OK;
}

static int run(int argc, char **argv, struct configuration *configuration)
{
	struct running running = {.configuration = configuration};
	struct configuration_error error;
	static struct reload reload;
	sigset_t signals;
	int r;

	log_open(configuration->log_level);
	log_join_journal(LOG_JOURNAL_PATH);
	ask_for_short_turns();
	/* Run by its fd, so only the file itself has to be executable for the user. */
	if (!open_worker(configuration, &running.worker) ||
	    !open_exporter(configuration, &running.exporter))
		return EX_UNAVAILABLE;
	r = become_user(configuration);
	if (r != 0)
		return r;
	r = configuration_check_paths(configuration, &error);
	if (r != 0) {
		fprintf(stderr, "vsockd: %s\n", error.text);
		return r;
	}

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGHUP);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);

	running.n_files = raise_file_limit(configuration);
	log_missing_walls(configuration);
	if (configuration->file) {
		running.reload = &reload;
		if (reload_init(&reload, argc, argv, configuration, &running.sockets,
				running.n_files) < 0) {
			log_event(LOG_ERR, LOG_NO_VM, "cannot prepare for reloads: %s",
				  strerror(errno));
			return EX_OSERR;
		}
	}
	service_begin();
	r = sockets_init(&running.sockets, configuration,
			 running.reload ? BANK_PLACES : configuration->n_vms);
	if (r < 0) {
		r = EX_CANTCREAT;
	} else {
		service_drop_rest();
		sockets_store_all(&running.sockets, configuration);
		r = run_processes(&running);
	}
	sockets_end(&running.sockets);
	return r;
}

int main(int argc, char **argv)
{
	struct configuration configuration;
	struct configuration_error error;
	int r = configuration_parse(argc, argv, &configuration, &error);

	if (r != 0) {
		fprintf(stderr, "vsockd: %s\n", error.text);
		return r;
	}
	switch (configuration.action) {
	case CONFIGURATION_HELP:
		for (size_t i = 0; configuration_help[i]; i++)
			fputs(configuration_help[i], stdout);
		break;
	case CONFIGURATION_VERSION:
		puts("vsockd " VSOCKD_VERSION);
		break;
	case CONFIGURATION_CAPABILITIES:
		fputs(configuration_capabilities, stdout);
		break;
	case CONFIGURATION_POLICY:
		configuration_print_policy(stdout, configuration.policy_role);
		break;
	case CONFIGURATION_CHECK:
		r = check(&configuration);
		break;
	case CONFIGURATION_RUN:
		r = run(argc, argv, &configuration);
	}
	configuration_free(&configuration);
	return r;
}
