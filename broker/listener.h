/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Unix sockets that vsockd listens on. Opened by the spawner before the front
 * is forked, accepted from by the front, unlinked by the spawner at the end.
 * Whoever may write to the file may connect, and whoever connects to a
 * vhost-user socket is a VMM: unless told otherwise that is the owner alone.
 * Does not log.
 */

#include <stdbool.h>
#include <sys/types.h>

struct listener {
	int fd;		  /* non-blocking, close-on-exec */
	const char *path; /* the caller's; outlives the listener */
	dev_t device;	  /* with inode: what was bound, for listener_unlink() */
	ino_t inode;
	bool is_passed;	 /* by a service manager: who connected meanwhile is waiting there */
	bool is_foreign; /* somebody else made it, and is to remove its file */
	bool is_stored;	 /* it outlives this process, and so does its file */
};

/* Who may connect. */
struct listener_access {
	mode_t mode; /* permission bits only */
	uid_t owner; /* (uid_t)-1, (gid_t)-1: as the file is made */
	gid_t group;
};

#define LISTENER_OWNER_ONLY                                                                        \
	((struct listener_access){.mode = 0600, .owner = (uid_t)-1, .group = (gid_t)-1})

struct listener_failure {
	char text[400]; /* one line, names the path */
};

/*
 * Bind and listen. A socket that stands at path but that nobody listens on any
 * more, the remains of a crash, is replaced; anything else there is left alone
 * and is an error. Two programs that do this at a time do not hurt each other:
 * the directory is locked meanwhile. Nobody can connect before owner, group and
 * mode are as access says. The process must be single-threaded (umask, fsuid) and
 * have /proc. 0, or negative errno with ret_failure filled and nothing left behind.
 */
int listener_open(const char *path, const struct listener_access *access,
		  struct listener *ret_listener, struct listener_failure *ret_failure);

/* The same for SOCK_SEQPACKET: packets, whole or not at all. */
int listener_open_packets(const char *path, const struct listener_access *access,
			  struct listener *ret_listener, struct listener_failure *ret_failure);

/*
 * Let others connect than before; an owner or group of -1 stays what it is. 0, or
 * negative errno with ret_failure filled; then part of it may be done.
 */
int listener_change_access(const struct listener *listener, const struct listener_access *access,
			   struct listener_failure *ret_failure);

/*
 * Remove the socket from the file system if it is still ours there. 0, or negative errno
 * when it could not be told or removed: then it stays, and whoever binds there next takes
 * its place.
 */
int listener_unlink(const struct listener *listener);

/* Close the fd; may be called twice. The path stays. */
void listener_close(struct listener *listener);
