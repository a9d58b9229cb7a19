/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/disposal.h"

#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/session_internal.h"

/* /dev/null, /dev/zero and their like. */
#define MEMORY_DEVICES 1

static bool keeps;
static unsigned int n_kept;

void disposal_begin(void)
{
	keeps = true;
}

/*
 * Memory, eventfds and their like, pipes, and files on a disk of this host: a
 * file system without a block device behind it may be anybody's. A socket may
 * linger, or hold others in its queue that do.
 */
static bool is_closed_at_once(int fd)
{
	struct statx stat;

	if (fcntl(fd, F_GET_SEALS) >= 0)
		return true;
	if (session_stat_fd(fd, &stat) < 0)
		return false;
	switch (stat.stx_mode & S_IFMT) {
	case 0:
	case S_IFIFO:
		return true;
	case S_IFCHR:
		return stat.stx_rdev_major == MEMORY_DEVICES;
	case S_IFREG:
	case S_IFDIR:
		return stat.stx_dev_major != 0;
	default:
		return false;
	}
}

void disposal_close(int fd)
{
	if (keeps && !is_closed_at_once(fd))
		n_kept++;
	else
		close(fd);
}

unsigned int disposal_take_kept(void)
{
	unsigned int n = n_kept;

	n_kept = 0;
	return n;
}
