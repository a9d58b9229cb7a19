/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/walls.h"

#include <cap-ng.h>
#include <errno.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SECUREBITS_ALL                                                                             \
	(POLICY_SECUREBITS_NO_ROOT | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED |      \
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
