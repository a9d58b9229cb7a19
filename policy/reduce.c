/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the spawner gives up. Apart from what confined processes do, so that
 * their programs don't carry it.
 */
#include "policy/start.h"
#include "policy/walls.h"

#include <cap-ng.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

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

#define KEPT_MAX 8

struct kept_capability {
	unsigned int capability;
	bool is_needed;
};

static int keep_only(const struct kept_capability *kept, size_t n_kept)
{
	bool is_held[KEPT_MAX] = {false};
	bool has_setpcap;

	if (capng_get_caps_process())
		return -EPERM;
	has_setpcap = capng_have_capability(CAPNG_EFFECTIVE, CAP_SETPCAP);
	for (size_t i = 0; i < n_kept; i++)
		is_held[i] = capng_have_capability(CAPNG_PERMITTED, kept[i].capability);

	/* Without CAP_SETPCAP nothing can be locked; no_new_privs has to do. */
	if (has_setpcap && prctl(PR_SET_SECUREBITS, POLICY_SECUREBITS_NO_ROOT, 0, 0, 0))
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

/*
 * The set-up goes on after the change of ids, so more is kept than in the end.
 * Everything else root can do is gone from here on, first of all to open any
 * file: the ids decide.
 */
static int keep_for_setup(void)
{
	static const unsigned int kept[] = {
		CAP_SETUID, CAP_SETGID, /* the ids of front and workers */
		CAP_CHOWN, CAP_FOWNER,	/* owner and mode of the sockets */
		/* What policy_reduce_spawner() needs, or may have to keep. */
		CAP_SETPCAP, CAP_KILL, CAP_SYS_ADMIN};
	bool is_held[sizeof(kept) / sizeof(kept[0])];

	if (capng_get_caps_process())
		return -EPERM;
	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
		is_held[i] = capng_have_capability(CAPNG_PERMITTED, kept[i]);
	capng_clear(CAPNG_SELECT_CAPS);
	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
		if (is_held[i])
			capng_update(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED, kept[i]);
	}
	return capng_apply(CAPNG_SELECT_CAPS) ? -EPERM : 0;
}

int policy_become_user(uid_t user, gid_t group, struct policy_failure *ret_failure)
{
	int death_signal = 0, status;

	if (!policy_has_capability(CAP_SETUID) || !policy_has_capability(CAP_SETGID))
		return policy_fail(ret_failure, EPERM,
				   "cannot become user %u: only root can (CAP_SETUID and "
				   "CAP_SETGID); start vsockd as root, or as that user without "
				   "--user",
				   user);
	(void)prctl(PR_GET_PDEATHSIG, &death_signal);
	/* With that bit the change of ids leaves the permitted set alone. */
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) || setgroups(0, NULL) ||
	    setresgid(group, group, group) || setresuid(user, user, user))
		return policy_fail(ret_failure, errno,
				   "cannot become user %u, group %u: %s; inside a container that "
				   "has fewer ids name a user that it has",
				   user, group, strerror(errno));
	/* A change of ids clears it: whoever started us has not asked for that. */
	(void)prctl(PR_SET_PDEATHSIG, death_signal);
	status = keep_for_setup();
	if (!status && prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0))
		status = -errno;
	if (status)
		return policy_fail(ret_failure, -status, "cannot reduce capabilities: %s",
				   strerror(-status));
	return 0;
}

int policy_reduce_spawner(uint32_t insecure, bool makes_sockets, struct policy_failure *ret_failure)
{
	bool has_namespaces = !(insecure & POLICY_INSECURE_NO_NAMESPACES);
	const struct kept_capability kept[] = {
		/* Each worker gets a user id of its own. */
		{CAP_SETUID, true},
		{CAP_SETGID, true},
		/* Host programs' sockets belong to other users: connect() needs to write them. */
		{CAP_DAC_OVERRIDE, true},
		/* Owner and mode of the sockets that a reload makes. */
		{CAP_CHOWN, makes_sockets},
		{CAP_FOWNER, makes_sockets},
		{CAP_SYS_ADMIN, has_namespaces && namespaces_need_administrator()},
		/* The owner of a user namespace may signal into it; without one it takes this. */
		{CAP_KILL, !has_namespaces},
		/* The worker's bounding set is emptied where no namespace empties it. */
		{CAP_SETPCAP, !has_namespaces},
	};
	const struct rlimit none = {0, 0};
	int status;

	_Static_assert(sizeof(kept) / sizeof(kept[0]) <= KEPT_MAX, "all of them are noted");
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
