/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The daemon under test: a process in a fresh temporary directory with its
 * stderr in a file there. It dies with the test process.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define DAEMON_ARGUMENTS_MAX 32
#define DAEMON_PIDS_MAX	     64
#define DAEMON_PATHS	     4

/* What a service manager gives to the daemon. */
struct daemon_service {
	const char *notify;   /* NOTIFY_SOCKET */
	const char *watchdog; /* WATCHDOG_USEC, or NULL */
	const int *fds;	      /* from 3 on */
	size_t n_fds;
	const char *names; /* LISTEN_FDNAMES */
};

struct daemon {
	pid_t pid;
	int pidfd;
	const struct daemon_service *service; /* writable before daemon_start(); NULL: none */
	char directory[64];
	char paths[DAEMON_PATHS][128]; /* private to daemon_path() */
	size_t n_paths;
};

/*
 * Start with arguments (NULL-terminated) in which "@" stands for the temporary
 * directory. arguments[0] is the program; if it is "" the program is what the
 * environment variable VSOCKD names. 0 once a file of the name `socket` exists
 * in the directory (NULL: at once), else negative errno: -ECHILD if it ended
 * before, and the log went to our stderr.
 */
int daemon_start(struct daemon *daemon, const char *const *arguments, const char *socket,
		 int timeout);

/*
 * Only the directory, for what has to be there first; daemon_start() then uses it.
 * Without this call *daemon must be all zero before daemon_start().
 */
int daemon_prepare(struct daemon *daemon);

/* "DIRECTORY/name". The last DAEMON_PATHS - 1 results are valid. */
const char *daemon_path(struct daemon *daemon, const char *name);

/*
 * SIGTERM, wait, remove the directory. The exit status as a shell shows it
 * (128 + n for a signal), -ETIMEDOUT if it had to be killed, -EBADMSG if the
 * log has the report of a sanitizer; whenever it is not 0 the log goes to stderr.
 */
int daemon_stop(struct daemon *daemon, int timeout);

/* The same, but its directory stays, and daemon_start() may use it once more. */
int daemon_end(struct daemon *daemon, int timeout);

/* Does the log have this text? And wait for it: 0, -ETIMEDOUT. */
bool daemon_log_has(struct daemon *daemon, const char *text);
int daemon_wait_log(struct daemon *daemon, const char *text, int timeout);
/* In how many lines? And wait for as many. */
size_t daemon_count_log(struct daemon *daemon, const char *text);
int daemon_wait_log_times(struct daemon *daemon, const char *text, size_t n, int timeout);

/* The daemon and all its descendants, it first. Their number, at most DAEMON_PIDS_MAX. */
size_t daemon_pids(const struct daemon *daemon, pid_t *ret_pids);

/* As /proc says it: 'R' runs, 'S' waits for an event, 'T' is stopped, 'Z' has ended; 0: gone. */
char daemon_process_state(pid_t pid);

/* All of them wait for an event: nothing is under way. */
bool daemon_is_asleep(const struct daemon *daemon);

/* The descendants whose name (/proc/PID/comm) starts so, as "vsockd-worker". */
size_t daemon_find(const struct daemon *daemon, const char *name, pid_t *ret_pids);

/* Open fds of one process, or negative errno. */
int daemon_count_fds_of(pid_t pid);

/* Open fds of all of them together, or negative errno. */
int daemon_count_fds(const struct daemon *daemon);

/* Resident memory of all of them together, in bytes, or negative errno. */
int64_t daemon_resident(const struct daemon *daemon);

/* SIGKILL one of them and wait until it is gone from the process table. */
int daemon_kill(pid_t pid, int timeout);
