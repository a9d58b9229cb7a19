/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/start.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "policy/walls.h"

/*
 * Parent and child talk over a socket pair until the child is on its own:
 *
 *	child:  my namespaces exist (or: errno)
 *	parent: your ids are mapped
 *	child:  (only when a further step fails) step and errno
 *
 * The child's end closes with exec, or when policy_fork_front() returns; that
 * is success. No byte from outside is on the way, so the time limit is only
 * met by a host that is out of breath.
 */
#define STARTER_SECONDS 20

#define FRONT_NAMESPACES  (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
#define WORKER_NAMESPACES (FRONT_NAMESPACES | CLONE_NEWPID | CLONE_NEWCGROUP)

/* Fds are first moved out of the way, above every fixed one. */
#define FD_ASIDE 16

enum starter_step {
	STARTER_NAMESPACES = 1,
	STARTER_IDENTITY,
	STARTER_FDS,
	STARTER_EXEC,
};

struct starter_report {
	uint32_t step;
	int32_t error;
};

struct starter_plan {
	bool has_namespaces;
	bool is_privileged; /* may choose user ids */
	uint32_t host_id;   /* only where is_privileged */
	int child_end, parent_end;
};

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

#define AUTO_CLOSE __attribute__((cleanup(close_fd)))

static _Noreturn void child_give_up(const struct starter_plan *plan, enum starter_step step,
				    int error)
{
	const struct starter_report report = {step, error};

	(void)send(plan->child_end, &report, sizeof(report), MSG_NOSIGNAL);
	_exit(1);
}

/*
 * /proc/PID/uid_map belongs to root while the process may not be traced, and
 * the parent, an ordinary user, couldn't write it. policy_enter() takes the
 * bit away again; what the child holds until then, its parent holds too.
 */
static void child_await_maps(const struct starter_plan *plan)
{
	const struct starter_report report = {STARTER_NAMESPACES, 0};
	char go;

	if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
		child_give_up(plan, STARTER_NAMESPACES, errno);
	if (send(plan->child_end, &report, sizeof(report), MSG_NOSIGNAL) < 0)
		_exit(1);
	/* Blocks until the parent has written the maps, or is gone. */
	if (recv(plan->child_end, &go, sizeof(go), 0) != sizeof(go))
		_exit(1);
}

/*
 * Without a namespace that maps id 0 to a harmless one, the process really
 * changes its id, and what a namespace would have emptied is emptied here,
 * as long as there are capabilities to do it with.
 */
static int child_change_user(uint32_t id)
{
	int status = policy_lock_privileges();

	if (status)
		return status;
	if (setgroups(0, NULL) || setresgid(id, id, id) || setresuid(id, id, id))
		return -errno;
	return policy_drop_capabilities();
}

static void child_assume_identity(const struct starter_plan *plan)
{
	int status = 0;
	char none;

	if (plan->has_namespaces) {
		/* Id 0 in here: exec would drop the capabilities of any other. */
		if (setresgid(0, 0, 0) || setresuid(0, 0, 0))
			status = -errno;
	} else if (plan->is_privileged) {
		status = child_change_user(plan->host_id);
	}
	if (status)
		child_give_up(plan, STARTER_IDENTITY, -status);

	/* After the change of ids, which clears it. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
		child_give_up(plan, STARTER_IDENTITY, errno);
	/* A parent that died before that line has left its end of the pair closed. */
	if (recv(plan->child_end, &none, sizeof(none), MSG_DONTWAIT) >= 0 || errno != EAGAIN)
		_exit(1);
	/* The log and eventfds are written with writev(), which knows no MSG_NOSIGNAL. */
	if (signal(SIGPIPE, SIG_IGN) == SIG_ERR)
		child_give_up(plan, STARTER_IDENTITY, errno);
}

static int set_aside(const struct starter_plan *plan, int fd)
{
	int aside = fcntl(fd, F_DUPFD_CLOEXEC, FD_ASIDE);

	if (aside < 0)
		child_give_up(plan, STARTER_FDS, errno);
	return aside;
}

static void put_in_place(const struct starter_plan *plan, int fd, int place, int flags)
{
	if (dup3(fd, place, flags) < 0)
		child_give_up(plan, STARTER_FDS, errno);
}

static _Noreturn void child_run_worker(struct starter_plan plan, const struct policy_worker *worker,
				       int null_fd)
{
	static char *const no_environment[] = {NULL};
	const int program_place = POLICY_WORKER_BUFFER_FD + 1, pair_place = program_place + 1;
	int channel, buffer, program;

	child_await_maps(&plan);
	child_assume_identity(&plan);

	plan.child_end = set_aside(&plan, plan.child_end);
	null_fd = set_aside(&plan, null_fd);
	channel = set_aside(&plan, worker->channel);
	buffer = set_aside(&plan, worker->buffer);
	program = set_aside(&plan, worker->program);
	put_in_place(&plan, null_fd, STDIN_FILENO, 0);
	put_in_place(&plan, null_fd, STDOUT_FILENO, 0);
	put_in_place(&plan, channel, POLICY_WORKER_CHANNEL_FD, 0);
	put_in_place(&plan, buffer, POLICY_WORKER_BUFFER_FD, 0);
	put_in_place(&plan, program, program_place, O_CLOEXEC);
	put_in_place(&plan, plan.child_end, pair_place, O_CLOEXEC);
	plan.child_end = pair_place;
	if (syscall(SYS_close_range, (unsigned int)pair_place + 1, ~0u, 0u))
		child_give_up(&plan, STARTER_FDS, errno);

	syscall(SYS_execveat, program_place, "", worker->argv, no_environment, AT_EMPTY_PATH);
	child_give_up(&plan, STARTER_EXEC, errno);
}

static int fail_namespaces(struct policy_failure *ret_failure, int error)
{
	return policy_fail(ret_failure, error,
			   "cannot make namespaces: %s; this host forbids user namespaces: see "
			   "kernel.unprivileged_userns_clone, user.max_user_namespaces, "
			   "kernel.apparmor_restrict_unprivileged_userns, or the container's "
			   "policy; --insecure-no-namespaces goes on without this wall",
			   strerror(error));
}

static int fail_fork(struct policy_failure *ret_failure, int error)
{
	return policy_fail(ret_failure, error, "cannot start a process: %s", strerror(error));
}

static int fail_report(struct policy_failure *ret_failure, const struct starter_report *report)
{
	const char *step;

	switch (report->step) {
	case STARTER_NAMESPACES:
		return fail_namespaces(ret_failure, report->error);
	case STARTER_IDENTITY:
		step = "user id";
		break;
	case STARTER_FDS:
		step = "file descriptors";
		break;
	default:
		step = "exec of the worker program (must be executable by every user)";
		break;
	}
	return policy_fail(ret_failure, report->error, "cannot start a process: %s: %s", step,
			   strerror(report->error));
}

static int write_proc(pid_t pid, const char *file, const char *text)
{
	char path[64];
	size_t len = strlen(text);
	ssize_t written;
	int error;

	(void)snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	AUTO_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	/* The kernel takes a map in one write or not at all. */
	written = write(fd, text, len);
	error = errno;
	if (written == (ssize_t)len)
		return 0;
	return written < 0 ? -error : -EIO;
}

static int write_maps(const struct starter_plan *plan, pid_t pid,
		      struct policy_failure *ret_failure)
{
	uint32_t uid = plan->is_privileged ? plan->host_id : geteuid();
	uint32_t gid = plan->is_privileged ? plan->host_id : getegid();
	char uid_map[32], gid_map[32];
	int status;

	(void)snprintf(uid_map, sizeof(uid_map), "0 %u 1", uid);
	(void)snprintf(gid_map, sizeof(gid_map), "0 %u 1", gid);
	status = write_proc(pid, "setgroups", "deny");
	if (!status)
		status = write_proc(pid, "gid_map", gid_map);
	if (!status)
		status = write_proc(pid, "uid_map", uid_map);
	if (status)
		return policy_fail(ret_failure, -status,
				   "cannot map user id %u: %s; inside a container that has fewer "
				   "ids run as an ordinary user; --insecure-no-namespaces goes on "
				   "without this wall",
				   uid, strerror(-status));
	return 0;
}

/* 0: the child is on its own. */
static int lead_child(const struct starter_plan *plan, pid_t pid,
		      struct policy_failure *ret_failure)
{
	struct starter_report report;
	ssize_t len = recv(plan->parent_end, &report, sizeof(report), 0);
	int status;

	if (len != sizeof(report))
		return policy_fail(ret_failure, ECHILD, "cannot start a process: it ended early");
	if (report.error)
		return fail_report(ret_failure, &report);
	if (plan->has_namespaces) {
		status = write_maps(plan, pid, ret_failure);
		if (status)
			return status;
	}
	if (send(plan->parent_end, "", 1, MSG_NOSIGNAL) != 1)
		return policy_fail(ret_failure, ECHILD, "cannot start a process: it ended early");
	len = recv(plan->parent_end, &report, sizeof(report), 0);
	if (len == sizeof(report))
		return fail_report(ret_failure, &report);
	if (len)
		return policy_fail(ret_failure, ETIMEDOUT, "cannot start a process: no answer");
	return 0;
}

static void kill_child(const struct policy_process *process)
{
	/* By its id: it can't be anybody else's before this has waited for it. */
	(void)kill(process->pid, SIGKILL);
	while (waitpid(process->pid, NULL, 0) < 0 && errno == EINTR)
		;
	if (process->pidfd >= 0)
		close(process->pidfd);
}

static int supervise(const struct starter_plan *plan, const struct policy_process *process,
		     struct policy_process *ret_process, struct policy_failure *ret_failure)
{
	int status;

	if (process->pidfd < 0)
		status = policy_fail(ret_failure, EMFILE, "cannot start a process: no pidfd");
	else
		status = lead_child(plan, process->pid, ret_failure);
	if (status) {
		kill_child(process);
		return status;
	}
	*ret_process = *process;
	return 0;
}

static int make_plan(uint32_t insecure, uint32_t host_id, struct starter_plan *ret_plan,
		     struct policy_failure *ret_failure)
{
	const struct timeval limit = {.tv_sec = STARTER_SECONDS};
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return policy_fail(ret_failure, errno, "cannot start a process: socketpair: %s",
				   strerror(errno));
	/* The child has no limit: it sees the end of its parent. */
	(void)setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	*ret_plan = (struct starter_plan){
		.has_namespaces = !(insecure & POLICY_INSECURE_NO_NAMESPACES),
		.is_privileged =
			policy_has_capability(CAP_SETUID) && policy_has_capability(CAP_SETGID),
		.host_id = host_id,
		.parent_end = pair[0],
		.child_end = pair[1],
	};
	return 0;
}

/*
 * clone() and not clone3(): everything needed is within its flags, and the
 * filters of containers, which can't look into clone3()'s structure, refuse
 * that one altogether. The kernel's argument order is the same on x86-64 and
 * aarch64 up to the third. The C library doesn't know of the new process, which
 * therefore only makes system calls until it execs.
 */
static int clone_process(struct policy_process *ret_process)
{
	int pidfd = -1;
	long pid = syscall(SYS_clone, WORKER_NAMESPACES | CLONE_PIDFD | SIGCHLD, NULL, &pidfd, NULL,
			   NULL);

	if (pid < 0)
		return -errno;
	*ret_process = (struct policy_process){(pid_t)pid, pidfd};
	return 0;
}

/* For processes that go on in libraries: libcap-ng remembers a process id. */
static int fork_process(struct policy_process *ret_process)
{
	pid_t pid = fork();

	if (pid < 0)
		return -errno;
	*ret_process = (struct policy_process){pid, -1};
	/* The child can't be anybody else while it has not been waited for. */
	if (pid)
		ret_process->pidfd = (int)syscall(SYS_pidfd_open, pid, 0u);
	return 0;
}

int policy_clone(const struct policy_worker *worker, struct policy_process *ret_process,
		 struct policy_failure *ret_failure)
{
	struct policy_process process = {.pidfd = -1};
	struct starter_plan plan = {.parent_end = -1, .child_end = -1};
	int status;

	AUTO_CLOSE int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null_fd < 0)
		return policy_fail(ret_failure, errno, "cannot open /dev/null: %s",
				   strerror(errno));
	status = make_plan(worker->insecure, POLICY_WORKER_ID + worker->slot, &plan, ret_failure);
	if (status)
		return status;

	status = plan.has_namespaces ? clone_process(&process) : fork_process(&process);
	if (!status && !process.pid) {
		close(plan.parent_end);
		child_run_worker(plan, worker, null_fd);
	}
	close(plan.child_end);
	if (!status)
		status = supervise(&plan, &process, ret_process, ret_failure);
	else if (plan.has_namespaces)
		status = fail_namespaces(ret_failure, -status);
	else
		status = fail_fork(ret_failure, -status);
	close(plan.parent_end);
	return status;
}

/* The child's half of policy_fork_front(); returns or ends the process. */
static void enter_front(const struct starter_plan *plan)
{
	close(plan->parent_end);
	if (plan->has_namespaces) {
		/* Groups first: with "deny" in place they can't be dropped any more. */
		if (plan->is_privileged && setgroups(0, NULL))
			child_give_up(plan, STARTER_IDENTITY, errno);
		if (unshare(FRONT_NAMESPACES))
			child_give_up(plan, STARTER_NAMESPACES, errno);
	}
	child_await_maps(plan);
	child_assume_identity(plan);
	close(plan->child_end);
}

int policy_fork_front(uint32_t insecure, struct policy_process *ret_process,
		      struct policy_failure *ret_failure)
{
	struct policy_process process = {.pidfd = -1};
	struct starter_plan plan = {.parent_end = -1, .child_end = -1};
	int status = make_plan(insecure, POLICY_FRONT_ID, &plan, ret_failure);

	if (status)
		return status;
	status = fork_process(&process);
	if (!status && !process.pid) {
		enter_front(&plan);
		return POLICY_IS_FRONT;
	}
	close(plan.child_end);
	if (!status)
		status = supervise(&plan, &process, ret_process, ret_failure);
	else
		status = fail_fork(ret_failure, -status);
	close(plan.parent_end);
	return status;
}
