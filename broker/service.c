/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/service.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include "broker/log.h"

/* systemd.exec(5): a name has at most so many bytes, no control character and no colon. */
#define NAME_LEN_MAX 255

#define HEXADECIMAL "0123456789abcdef"

/* Three chances to be heard within the limit. */
#define WATCHDOG_SHARE 3

struct given {
	int fd; /* -1: taken */
	char *name;
};

static struct given *given;
static size_t n_given;
static bool is_managed;

void service_begin(void)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(/* unset_environment= */ 1, &names);

	is_managed = getenv("NOTIFY_SOCKET") != NULL;
	if (n <= 0)
		return;
	given = calloc((size_t)n, sizeof(*given));
	for (int i = 0; given && i < n; i++) {
		given[i].fd = SD_LISTEN_FDS_START + i;
		given[i].name = names && names[i] ? names[i] : NULL;
		n_given++;
	}
	free(names);
}

/* ---- names ---- */

static bool append(char *name, size_t *len, const char *text)
{
	for (; *text; text++) {
		bool is_plain = isgraph((unsigned char)*text) && !strchr(":%@", *text);

		if (*len + 3 > NAME_LEN_MAX)
			return false;
		*len += (size_t)sprintf(name + *len, is_plain ? "%c" : "%%%02x",
					(unsigned char)*text);
	}
	return true;
}

/*
 * The address, and where there is a file, which one: so that a successor can tell
 * whether what stands at the path is still this socket's. false: too long.
 */
static bool make_name(const struct listener *listener, const struct port_address *address,
		      uint32_t port, char ret[static NAME_LEN_MAX + 64])
{
	char text[PORT_TEXT_SIZE];
	size_t len = 0;

	ports_print_address(address, port, text);
	if (!append(ret, &len, text))
		return false;
	/* Both 0 where there is no file; the mark is there nevertheless. */
	len += (size_t)sprintf(ret + len, "@%" PRIx64 ".%" PRIx64, (uint64_t)listener->device,
			       (uint64_t)listener->inode);
	return len <= NAME_LEN_MAX;
}

/*
 * What make_name() ends with: the socket is from our store. An activator names sockets
 * as it likes, after units as a rule, and a unit may well have an "@". NULL: none.
 */
static const char *find_identity(const char *name)
{
	const char *at = name ? strrchr(name, '@') : NULL;
	size_t device_len, inode_len;

	if (!at)
		return NULL;
	device_len = strspn(at + 1, HEXADECIMAL);
	if (device_len == 0 || at[1 + device_len] != '.')
		return NULL;
	inode_len = strspn(at + 1 + device_len + 1, HEXADECIMAL);
	return inode_len > 0 && at[1 + device_len + 1 + inode_len] == '\0' ? at : NULL;
}

static bool is_stored_name(const char *name)
{
	return find_identity(name);
}

void service_store(struct listener *listener, const struct port_address *address, uint32_t port)
{
	char name[NAME_LEN_MAX + 64], text[sizeof(name) + 64];
	int r;

	if (!is_managed || listener->fd < 0 || listener->is_foreign || listener->is_stored)
		return;
	if (!make_name(listener, address, port, name))
		return;
	(void)snprintf(text, sizeof(text), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	r = sd_pid_notify_with_fds(0, 0, text, &listener->fd, 1);
	if (r < 0)
		log_event(LOG_WARNING, LOG_NO_VM, "the service manager keeps no socket: %s",
			  strerror(-r));
	listener->is_stored = r > 0;
}

void service_forget(struct listener *listener, const struct port_address *address, uint32_t port)
{
	char name[NAME_LEN_MAX + 64];

	if (!listener->is_stored || !make_name(listener, address, port, name))
		return;
	(void)sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", name);
	listener->is_stored = false;
}

/* ---- what was passed ---- */

static bool has_option(int fd, int option, int wanted)
{
	int value = 0;
	socklen_t len = sizeof(value);

	return getsockopt(fd, SOL_SOCKET, option, &value, &len) == 0 && value == wanted;
}

/* The file of a socket from the store has to be the one that was there then. */
static bool is_still_there(const struct given *passed, const char *path, struct stat *ret_found)
{
	char identity[48];
	const char *at = find_identity(passed->name);

	if (lstat(path, ret_found) || !S_ISSOCK(ret_found->st_mode))
		return false;
	(void)snprintf(identity, sizeof(identity), "@%" PRIx64 ".%" PRIx64,
		       (uint64_t)ret_found->st_dev, (uint64_t)ret_found->st_ino);
	return !at || strcmp(at, identity) == 0;
}

static bool take(struct given *passed, const char *path, struct listener *ret_listener)
{
	struct stat found = {0};

	if (path && !is_still_there(passed, path, &found)) {
		log_event(LOG_NOTICE, LOG_NO_VM,
			  "socket \"%s\": what stands there is not the one that was passed", path);
		return false;
	}
	if (fcntl(passed->fd, F_SETFD, FD_CLOEXEC) < 0 ||
	    fcntl(passed->fd, F_SETFL, O_NONBLOCK) < 0)
		return false;
	*ret_listener = (struct listener){
		.fd = passed->fd,
		.path = path,
		.device = found.st_dev,
		.inode = found.st_ino,
		.is_passed = true,
		.is_foreign = !is_stored_name(passed->name),
		.is_stored = is_stored_name(passed->name),
	};
	passed->fd = -1;
	return true;
}

bool service_take(const struct port_address *address, uint32_t port, int type, const char *path,
		  struct listener *ret_listener)
{
	for (size_t i = 0; i < n_given; i++) {
		int fd = given[i].fd;

		if (fd < 0 || !has_option(fd, SO_ACCEPTCONN, 1) || !has_option(fd, SO_TYPE, type) ||
		    !ports_is_bound(fd, address, port))
			continue;
		if (take(&given[i], path, ret_listener))
			return true;
	}
	return false;
}

void service_leave(int fd)
{
	for (size_t i = 0; i < n_given; i++)
		if (given[i].fd == fd)
			given[i].fd = -1;
}

void service_drop_rest(void)
{
	for (size_t i = 0; i < n_given; i++) {
		const char *name = given[i].name ? given[i].name : "?";

		if (given[i].fd >= 0) {
			log_event(LOG_NOTICE, LOG_NO_VM,
				  "a socket that was passed belongs to no VM and is closed");
			close(given[i].fd);
			if (is_managed && is_stored_name(name))
				(void)sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", name);
		}
		free(given[i].name);
	}
	free(given);
	given = NULL;
	n_given = 0;
}

/* ---- state ---- */

void service_ready(const char *status)
{
	if (is_managed)
		(void)sd_notifyf(0, "READY=1\nSTATUS=%s", status);
}

void service_reloading(void)
{
	struct timespec now = {0};

	if (!is_managed)
		return;
	clock_gettime(CLOCK_MONOTONIC, &now);
	(void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64,
			 (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000);
}

void service_stopping(void)
{
	if (is_managed)
		(void)sd_notify(0, "STOPPING=1");
}

uint64_t service_watchdog(void)
{
	uint64_t limit = 0, interval;

	if (!is_managed || sd_watchdog_enabled(0, &limit) <= 0)
		return 0;
	interval = limit / 1000 / WATCHDOG_SHARE;
	return interval > 0 ? interval : 1;
}

void service_alive(void)
{
	(void)sd_notify(0, "WATCHDOG=1");
}
