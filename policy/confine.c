/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/policy.h"
#include "policy/rules.h"
#include "policy/walls.h"

#include <errno.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef POLICY_SANITIZED
const bool policy_has_filter = false;
#else
const bool policy_has_filter = true;
#endif

int policy_fail(struct policy_failure *ret_failure, int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(ret_failure->text, sizeof(ret_failure->text), format, arguments);
	va_end(arguments);
	return -error;
}

static int fail_step(struct policy_failure *ret_failure, int error, const char *step)
{
	return policy_fail(ret_failure, error, "cannot confine: %s: %s", step, strerror(error));
}

static int fail_root(struct policy_failure *ret_failure, const char *step)
{
	int error = errno;

	return policy_fail(ret_failure, error,
			   "cannot make the empty root: %s: %s; this host forbids mounts in a user "
			   "namespace (kernel.apparmor_restrict_unprivileged_userns, a container's "
			   "policy) or runs from an initramfs; --insecure-no-namespaces goes on "
			   "without this wall",
			   step, strerror(error));
}

/*
 * From here on no path leads anywhere. The mount namespace is our own, so
 * /proc, the one directory that is sure to exist, can be mounted over. The
 * tmpfs is read-only: one page and two inodes are the least it takes.
 */
static int enter_empty_root(struct policy_failure *ret_failure)
{
	if (mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL))
		return fail_root(ret_failure, "private mounts");
	if (mount("empty", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY,
		  "size=4096,nr_inodes=2,mode=0555"))
		return fail_root(ret_failure, "mount");
	if (chdir("/proc"))
		return fail_root(ret_failure, "chdir");
	/* Old and new root are stacked in one place, so no directory is needed for the old. */
	if (syscall(SYS_pivot_root, ".", "."))
		return fail_root(ret_failure, "pivot_root");
	if (umount2(".", MNT_DETACH))
		return fail_root(ret_failure, "umount");
	if (chdir("/"))
		return fail_root(ret_failure, "chdir to /");
	return 0;
}

/*
 * libcap-ng reads /proc for the bounding set, mounts need capabilities: hence
 * bounding set, root, capabilities. Without namespaces the starter has locked
 * what could be locked; an ordinary user has nothing to lock with.
 */
static int give_up_privileges(const struct policy_limits *limits,
			      struct policy_failure *ret_failure)
{
	bool has_namespaces = !(limits->insecure & POLICY_INSECURE_NO_NAMESPACES);
	int status;

	if (has_namespaces || policy_has_capability(CAP_SETPCAP)) {
		status = policy_lock_privileges();
		if (status)
			return policy_fail(ret_failure, -status,
					   "cannot empty the capability bounding set: %s; this "
					   "host gives no capabilities in a user namespace; "
					   "--insecure-no-namespaces goes on without this wall",
					   strerror(-status));
	}
	if (has_namespaces) {
		status = enter_empty_root(ret_failure);
		if (status)
			return status;
	}
	status = policy_drop_capabilities();
	if (status)
		return fail_step(ret_failure, -status, "capabilities");
	return 0;
}

static int limit_files(uint64_t n_files, struct policy_failure *ret_failure)
{
	const struct rlimit wanted = {n_files, n_files};
	struct rlimit found = {0, 0};

	if (!setrlimit(RLIMIT_NOFILE, &wanted))
		return 0;
	(void)getrlimit(RLIMIT_NOFILE, &found);
	return policy_fail(ret_failure, EMFILE,
			   "%llu open files are needed, the limit is %llu: raise it (ulimit -Hn, "
			   "LimitNOFILE=) or configure fewer connections",
			   (unsigned long long)n_files, (unsigned long long)found.rlim_max);
}

static int limit_to_none(unsigned int resource, struct policy_failure *ret_failure)
{
	const struct rlimit none = {0, 0};

	if (setrlimit(resource, &none))
		return fail_step(ret_failure, errno, "limits");
	return 0;
}

/*
 * The front's log may be a regular file, and a size limit of 0 would make each
 * line a SIGXFSZ. Nothing is lost: it can open and write no other file.
 */
static bool may_write_files(enum policy_role role)
{
	struct stat log;

	if (!policy_has_filter)
		return true;
	return role == POLICY_FRONT && !fstat(STDERR_FILENO, &log) && S_ISREG(log.st_mode);
}

static int limit_resources(enum policy_role role, uint64_t n_files,
			   struct policy_failure *ret_failure)
{
	int status = limit_files(n_files, ret_failure);

	if (!status)
		status = limit_to_none(RLIMIT_CORE, ret_failure);
	if (!status && !may_write_files(role))
		status = limit_to_none(RLIMIT_FSIZE, ret_failure);
#ifndef POLICY_SANITIZED
	if (!status)
		status = limit_to_none(RLIMIT_NPROC, ret_failure);
#endif
	if (!status && role != POLICY_FRONT)
		status = limit_to_none(RLIMIT_MEMLOCK, ret_failure);
	if (!status && role != POLICY_FRONT)
		status = limit_to_none(RLIMIT_MSGQUEUE, ret_failure);
	return status;
}

/* What follows the process for good and what would let others look into it. */
static int set_process_bits(struct policy_failure *ret_failure)
{
	/*
	 * The starter has set the death signal and then found its parent alive;
	 * once more, because an exec may clear it. The end of the channel stays
	 * the other way to learn of it.
	 */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
		return fail_step(ret_failure, errno, "parent-death signal");
#ifndef POLICY_SANITIZED
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		return fail_step(ret_failure, errno, "dumpable");
#endif
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return fail_step(ret_failure, errno, "no_new_privs");
	return 0;
}

/*
 * A worker, and the exporter, holds its fixed fds and nothing else. Its stderr, which
 * until now could tell of a failure, goes last: bytes of a guest, or of a client, must
 * not reach the log.
 */
static int reduce_fds(enum policy_role role, struct policy_failure *ret_failure)
{
	unsigned int last = role == POLICY_WORKER ? POLICY_WORKER_FD_MAX : POLICY_EXPORTER_FD_MAX;

	if (syscall(SYS_close_range, last + 1, ~0u, 0u))
		return fail_step(ret_failure, errno, "close_range");
	if (policy_has_filter && dup2(STDIN_FILENO, STDERR_FILENO) < 0)
		return fail_step(ret_failure, errno, "stderr");
	return 0;
}

int policy_enter(enum policy_role role, const struct policy_limits *limits,
		 struct policy_failure *ret_failure)
{
	int status = give_up_privileges(limits, ret_failure);

	if (!status)
		status = limit_resources(role, limits->n_files, ret_failure);
	if (!status)
		status = set_process_bits(ret_failure);
	if (status)
		return status;

	status = policy_restrict_paths();
	if (status)
		return fail_step(ret_failure, -status, "Landlock");
	if (role != POLICY_FRONT) {
		status = reduce_fds(role, ret_failure);
		if (status)
			return status;
	}
	if (!policy_has_filter || (limits->insecure & POLICY_INSECURE_NO_SECCOMP))
		return 0;
	status = policy_load_filter(role);
	if (status)
		return policy_fail(ret_failure, -status,
				   "cannot load the system-call filter: %s; this host has no "
				   "seccomp filters (CONFIG_SECCOMP_FILTER) or forbids them; "
				   "--insecure-no-seccomp goes on without this wall",
				   strerror(-status));
	return 0;
}
