/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/walls.h"

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * Numbers and layout of the kernel's interface, written down here because the
 * kernel that runs may know more than the headers of the build: the ABI number
 * is asked for and decides how much of the structure is used.
 */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_restrict_self  446
#endif

#define LANDLOCK_VERSION 1u /* flag: answer with the ABI number */

struct landlock_ruleset {
	uint64_t handled_access_fs;
	uint64_t handled_access_net; /* ABI 4 */
	uint64_t scoped;	     /* ABI 6 */
};

/* The low bits of handled_access_fs that an ABI number knows. */
static uint64_t file_accesses(long abi)
{
	if (abi >= 5)
		return (UINT64_C(1) << 16) - 1; /* with ioctl() on devices */
	if (abi >= 3)
		return (UINT64_C(1) << 15) - 1; /* with truncation */
	if (abi == 2)
		return (UINT64_C(1) << 14) - 1; /* with links across directories */
	return (UINT64_C(1) << 13) - 1;
}

int policy_restrict_paths(void)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_VERSION);
	struct landlock_ruleset ruleset;
	size_t len = sizeof(ruleset.handled_access_fs);
	int status = 0;
	long fd;

	if (abi < 1)
		return 0;
	ruleset = (struct landlock_ruleset){.handled_access_fs = file_accesses(abi)};
	if (abi >= 4) {
		ruleset.handled_access_net = 3; /* bind and connect, TCP */
		len += sizeof(ruleset.handled_access_net);
	}
	if (abi >= 6) {
		ruleset.scoped = 3; /* abstract sockets and signals */
		len += sizeof(ruleset.scoped);
	}

	fd = syscall(SYS_landlock_create_ruleset, &ruleset, len, 0u);
	if (fd < 0)
		return -errno;
	/* No rule is added: everything that is handled is refused. */
	if (syscall(SYS_landlock_restrict_self, (int)fd, 0u))
		status = -errno;
	close((int)fd);
	return status;
}
