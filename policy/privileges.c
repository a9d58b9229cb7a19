/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/start.h"
#include "policy/walls.h"

#include <cap-ng.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SECUREBITS_NO_ROOT                                                                         \
	(SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |                      \
	 SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED)
#define SECUREBITS_ALL                                                                             \
	(SECUREBITS_NO_ROOT | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED |             \
	 SECBIT_KEEP_CAPS_LOCKED)

int policy_lock_privileges(void)
{
	int is_in_set;

	if (prctl(PR_SET_SECUREBITS, SECUREBITS_ALL, 0, 0, 0))
		return -errno;
	capng_clear(CAPNG_SELECT_BOTH);
	if (capng_apply(CAPNG_SELECT_BOUNDS))
		return -EPERM;
	/*
	 * libcap-ng passes over the bounding set in silence when it thinks that
	 * CAP_SETPCAP is missing: ask the kernel what came of it.
	 */
	for (unsigned long i = 0; (is_in_set = prctl(PR_CAPBSET_READ, i, 0, 0, 0)) >= 0; i++) {
		if (is_in_set)
			return -EPERM;
	}
	return 0;
}

int policy_drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		return -errno;
	capng_clear(CAPNG_SELECT_CAPS);
	if (capng_apply(CAPNG_SELECT_CAPS))
		return -EPERM;
	/* Not through libcap-ng: it would look for /proc, which is gone. */
	if (syscall(SYS_capget, &header, data))
		return -errno;
	for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
		if (data[i].effective || data[i].permitted || data[i].inheritable)
			return -EPERM;
	}
	return 0;
}

bool policy_has_capability(unsigned int capability)
{
	return !capng_get_caps_process() && capng_have_capability(CAPNG_EFFECTIVE, capability);
}

static bool setting_is(const char *path, char value)
{
	char first = '\0';
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	if (read(fd, &first, 1) != 1)
		first = '\0';
	close(fd);
	return first == value;
}

/* Hosts on which user namespaces are for CAP_SYS_ADMIN only. */
static bool namespaces_need_administrator(void)
{
	return setting_is("/proc/sys/kernel/unprivileged_userns_clone", '0') ||
	       setting_is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", '1');
}

struct kept_capability {
	unsigned int capability;
	bool is_needed;
};

static int keep_only(const struct kept_capability *kept, size_t n_kept)
{
	bool is_held[8] = {false};
	bool has_setpcap;

	if (capng_get_caps_process())
		return -EPERM;
	has_setpcap = capng_have_capability(CAPNG_EFFECTIVE, CAP_SETPCAP);
	for (size_t i = 0; i < n_kept; i++)
		is_held[i] = capng_have_capability(CAPNG_PERMITTED, kept[i].capability);

	/* Without CAP_SETPCAP nothing can be locked; no_new_privs has to do. */
	if (has_setpcap && prctl(PR_SET_SECUREBITS, SECUREBITS_NO_ROOT, 0, 0, 0))
		return -errno;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
		return -errno;

	capng_clear(CAPNG_SELECT_BOTH);
	for (size_t i = 0; i < n_kept; i++) {
		if (kept[i].is_needed && is_held[i])
			capng_update(CAPNG_ADD,
				     CAPNG_EFFECTIVE | CAPNG_PERMITTED | CAPNG_BOUNDING_SET,
				     kept[i].capability);
	}
	if (capng_apply(has_setpcap ? CAPNG_SELECT_BOTH : CAPNG_SELECT_CAPS))
		return -EPERM;
	return 0;
}

int policy_reduce_spawner(uint32_t insecure, struct policy_failure *ret_failure)
{
	bool has_namespaces = !(insecure & POLICY_INSECURE_NO_NAMESPACES);
	const struct kept_capability kept[] = {
		/* Each worker gets a user id of its own. */
		{CAP_SETUID, true},
		{CAP_SETGID, true},
		/* Host programs' sockets belong to other users: connect() needs to write them. */
		{CAP_DAC_OVERRIDE, true},
		{CAP_SYS_ADMIN, has_namespaces && namespaces_need_administrator()},
		/* The owner of a user namespace may signal into it; without one it takes this. */
		{CAP_KILL, !has_namespaces},
		/* The worker's bounding set is emptied where no namespace empties it. */
		{CAP_SETPCAP, !has_namespaces},
	};
	const struct rlimit none = {0, 0};
	int status;

	if (policy_has_capability(CAP_SETGID) && setgroups(0, NULL))
		return policy_fail(ret_failure, errno, "cannot drop supplementary groups: %s",
				   strerror(errno));
	status = keep_only(kept, sizeof(kept) / sizeof(kept[0]));
	if (status)
		return policy_fail(ret_failure, -status, "cannot reduce capabilities: %s",
				   strerror(-status));
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || setrlimit(RLIMIT_CORE, &none))
		return policy_fail(ret_failure, errno, "cannot give up privileges: %s",
				   strerror(errno));
#ifndef POLICY_SANITIZED
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		return policy_fail(ret_failure, errno, "cannot refuse to be traced: %s",
				   strerror(errno));
#endif
	return 0;
}
