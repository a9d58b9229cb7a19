/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Unix sockets that vsockd listens on. Opened by the spawner before the front
 * is forked, accepted from by the front, unlinked by the spawner at the end.
 * Only the owner may connect (mode 0600), as whoever connects to a vhost-user
 * socket is a VMM. Does not log.
 */

#include <sys/types.h>

struct listener {
	int fd;		  /* non-blocking, close-on-exec */
	const char *path; /* the caller's; outlives the listener */
	dev_t device;	  /* with inode: what was bound, for listener_unlink() */
	ino_t inode;
};

struct listener_failure {
	char text[256]; /* one line, names the path */
};

/*
 * Bind and listen. A socket that stands at path but that nobody listens on any
 * more, the remains of a crash, is replaced; anything else there is left alone
 * and is an error. Two programs that do this at a time do not hurt each other:
 * the directory is locked meanwhile. The process must be single-threaded (umask).
 * 0, or negative errno with ret_failure filled.
 */
int listener_open(const char *path, struct listener *ret_listener,
		  struct listener_failure *ret_failure);

/* Remove the socket from the file system if it is still ours there. */
void listener_unlink(const struct listener *listener);

/* Close the fd; may be called twice. The path stays. */
void listener_close(struct listener *listener);
