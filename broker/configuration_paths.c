/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/configuration_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

/* A path as its names clash with others: within one directory, by name. */
struct place {
	const char *kind; /* "socket", "uds-path", or one of vsockd's own */
	const char *path;
	const char *name;
	dev_t device; /* both 0 where the file system was not asked: then name is the path */
	ino_t inode;
	bool is_uds_path;
	const char *message_path; /* of a uds-path */
	char where[160];	  /* begin of an error line: where it comes from, and "vm 3: " */
	char whose[32];		  /* " of vm 3" */
};

/* Decimal digits as the front appends them: no leading zero, 32 bits. */
static bool is_port(const char *text)
{
	static const char highest[] = "4294967295";
	size_t len = strlen(text);

	if (!len || text[strspn(text, "0123456789")] || (text[0] == '0' && len > 1))
		return false;
	return len < strlen(highest) || (len == strlen(highest) && strcmp(text, highest) <= 0);
}

/*
 * What stands behind the underscore when path is one of the sockets that belong to
 * uds_path: a port that the guest can reach, or CONFIGURATION_MESSAGE_SUFFIX. NULL otherwise.
 */
static const char *suffix_in(const struct place *uds_path, const struct place *path)
{
	size_t len = strlen(uds_path->name);

	if (!uds_path->is_uds_path || strncmp(path->name, uds_path->name, len) != 0 ||
	    path->name[len] != '_' ||
	    (!is_port(path->name + len + 1) &&
	     strcmp(path->name + len + 1, CONFIGURATION_MESSAGE_SUFFIX) != 0))
		return NULL;
	return path->name + len + 1;
}

static int check_pair(const struct place *first, const struct place *second,
		      struct configuration_error *ret_error)
{
	const struct place *inner = second;
	const struct place *outer = first;
	const char *suffix;

	if (first->device != second->device || first->inode != second->inode)
		return 0;
	if (strcmp(first->name, second->name) == 0)
		return configuration_fail(
			ret_error, EX_DATAERR,
			"%s%s " QUOTED ": it is also the %s%s; choose another path", second->where,
			second->kind, second->path, first->kind, first->whose);
	suffix = suffix_in(outer, inner);
	if (!suffix) {
		inner = first;
		outer = second;
		suffix = suffix_in(outer, inner);
	}
	if (!suffix)
		return 0;
	return configuration_fail(
		ret_error, EX_DATAERR,
		"%s%s " QUOTED ": it is %s%s of uds-path " QUOTED "%s; choose another path",
		inner->where, inner->kind, inner->path, is_port(suffix) ? "port " : "the ", suffix,
		outer->path, outer->whose);
}

static int check_places(const struct place *places, size_t n_places,
			struct configuration_error *ret_error)
{
	for (size_t second = 1; second < n_places; second++) {
		for (size_t first = 0; first < second; first++) {
			int r = check_pair(&places[first], &places[second], ret_error);

			if (r)
				return r;
		}
	}
	return 0;
}

static struct place place_of(const struct vm_configuration *vm, const char *kind, const char *path)
{
	struct place place = {
		.kind = kind,
		.path = path,
		.name = path,
		.is_uds_path = path == vm->uds_path,
		.message_path = vm->message_path,
	};

	snprintf(place.where, sizeof(place.where), "%svm %" PRIu64 ": ", vm->origin, vm->guest_cid);
	snprintf(place.whose, sizeof(place.whose), " of vm %" PRIu64, vm->guest_cid);
	return place;
}

static struct place place_of_service(const struct service_socket *service, const char *kind)
{
	struct place place = {.kind = kind, .path = service->path, .name = service->path};

	snprintf(place.where, sizeof(place.where), "%s", service->origin);
	return place;
}

/* All paths, of the VMs and of vsockd itself; NULL without memory, to be freed by the caller. */
static struct place *list_places(const struct configuration *configuration, size_t *ret_n_places)
{
	size_t n_places = 2 * configuration->n_vms + 3;
	struct place *places;

	for (size_t i = 0; i < configuration->n_vms; i++)
		n_places += configuration->vms[i].n_listens;
	places = calloc(n_places, sizeof(*places));
	n_places = 0;
	if (!places)
		return NULL;
	for (size_t i = 0; i < configuration->n_vms; i++) {
		const struct vm_configuration *vm = &configuration->vms[i];

		if (vm->socket)
			places[n_places++] = place_of(vm, "socket", vm->socket);
		if (vm->uds_path)
			places[n_places++] = place_of(vm, "uds-path", vm->uds_path);
		for (size_t k = 0; k < vm->n_listens; k++)
			if (vm->listens[k].address.family == PORT_UNIX)
				places[n_places++] =
					place_of(vm, "listen", vm->listens[k].address.name);
	}
	if (configuration->control.path)
		places[n_places++] = place_of_service(&configuration->control, "control");
	if (configuration->metrics.path)
		places[n_places++] = place_of_service(&configuration->metrics, "metrics");
	*ret_n_places = n_places;
	return places;
}

int configuration_check_clashes(const struct configuration *configuration,
				struct configuration_error *ret_error)
{
	const struct vm_configuration *vms = configuration->vms;
	struct place *places;
	size_t n_places;
	int r;

	for (size_t second = 1; second < configuration->n_vms; second++)
		for (size_t first = 0; first < second; first++)
			if (vms[first].guest_cid == vms[second].guest_cid)
				return configuration_fail(
					ret_error, EX_DATAERR,
					"%svm %" PRIu64 ": guest-cid %" PRIu64
					" is given to two VMs; each needs its own",
					vms[second].origin, vms[second].guest_cid,
					vms[second].guest_cid);

	places = list_places(configuration, &n_places);
	if (!places)
		return configuration_fail_memory(ret_error);
	r = check_places(places, n_places, ret_error);
	free(places);
	return r;
}

static int fail_directory(const struct place *place, const char *directory, int error,
			  struct configuration_error *ret_error)
{
	int code = EX_OSERR;
	const char *advice = "choose another path";

	if (error == ENOENT || error == ENOTDIR) {
		code = EX_NOINPUT;
		advice = "create it, or choose another path";
	} else if (error == EACCES || error == EPERM || error == EROFS) {
		code = EX_NOPERM;
	}
	return configuration_fail(ret_error, code, "%s%s " QUOTED ": directory " QUOTED ": %s; %s",
				  place->where, place->kind, place->path, directory,
				  strerror(error), advice);
}

static int fail_not_writable(const struct place *place, const struct stat *status,
			     struct configuration_error *ret_error)
{
	const struct passwd *user = getpwuid(status->st_uid);
	char owner[64];

	if (user)
		snprintf(owner, sizeof(owner), "%s", user->pw_name);
	else
		snprintf(owner, sizeof(owner), "%ju", (uintmax_t)status->st_uid);
	return configuration_fail(ret_error, EX_NOPERM,
				  "%s%s " QUOTED ": directory is not writable by vsockd "
				  "(mode %04o, owner %s); change that, or choose another path",
				  place->where, place->kind, place->path,
				  (unsigned int)(status->st_mode & 07777), owner);
}

/* On 0 the place is known by its directory's inode, so that spellings do not matter any more. */
static int check_directory(struct place *place, struct configuration_error *ret_error)
{
	const char *slash = strrchr(place->path, '/');
	char directory[CONFIGURATION_SOCKET_LEN_MAX + 1] = ".";
	struct stat status;

	if (slash) /* the file in "/" has a directory of one byte */
		snprintf(directory, sizeof(directory), "%.*s",
			 slash == place->path ? 1 : (int)(slash - place->path), place->path);
	if (stat(directory, &status) < 0)
		return fail_directory(place, directory, errno, ret_error);
	if (!S_ISDIR(status.st_mode))
		return fail_directory(place, directory, ENOTDIR, ret_error);
	if (faccessat(AT_FDCWD, directory, W_OK | X_OK, AT_EACCESS) < 0) {
		if (errno == EACCES)
			return fail_not_writable(place, &status, ret_error);
		return fail_directory(place, directory, errno, ret_error);
	}
	place->name = slash ? slash + 1 : place->path;
	place->device = status.st_dev;
	place->inode = status.st_ino;
	return 0;
}

/* A socket that an earlier vsockd left is replaced; nothing else is taken away from anybody. */
static int check_occupant(const struct place *place, const char *path,
			  struct configuration_error *ret_error)
{
	struct stat status;
	const char *kind = "a device or pipe";

	if (fstatat(AT_FDCWD, path, &status, AT_SYMLINK_NOFOLLOW) < 0) {
		if (errno == ENOENT)
			return 0;
		return configuration_fail(ret_error, EX_OSERR, "%s%s " QUOTED ": %s", place->where,
					  place->kind, path, strerror(errno));
	}
	if (S_ISSOCK(status.st_mode))
		return 0;
	if (S_ISREG(status.st_mode))
		kind = "a regular file";
	else if (S_ISDIR(status.st_mode))
		kind = "a directory";
	else if (S_ISLNK(status.st_mode))
		kind = "a symbolic link";
	return configuration_fail(ret_error, EX_CANTCREAT,
				  "%s%s " QUOTED ": %s is in the way, not a socket; remove it, or "
				  "choose another path",
				  place->where, place->kind, path, kind);
}

static int check_fd(const struct vm_configuration *vm, struct configuration_error *ret_error)
{
	int domain = 0, type = 0;
	socklen_t domain_len = sizeof(domain), type_len = sizeof(type);

	if (fcntl(vm->socket_fd, F_GETFD) < 0)
		return configuration_fail(ret_error, EX_NOINPUT,
					  "vm %" PRIu64 ": fd %d is not open; pass it on to vsockd",
					  vm->guest_cid, vm->socket_fd);
	if (getsockopt(vm->socket_fd, SOL_SOCKET, SO_DOMAIN, &domain, &domain_len) < 0 ||
	    getsockopt(vm->socket_fd, SOL_SOCKET, SO_TYPE, &type, &type_len) < 0 ||
	    domain != AF_UNIX || type != SOCK_STREAM)
		return configuration_fail(
			ret_error, EX_DATAERR,
			"vm %" PRIu64 ": fd %d is not a unix stream socket; pass on a listening "
			"or connected one",
			vm->guest_cid, vm->socket_fd);
	return 0;
}

int configuration_check_paths(const struct configuration *configuration,
			      struct configuration_error *ret_error)
{
	struct place *places;
	size_t n_places;
	int r = 0;

	for (size_t i = 0; i < configuration->n_vms; i++) {
		if (configuration->vms[i].socket_fd >= 0)
			r = check_fd(&configuration->vms[i], ret_error);
		if (r)
			return r;
	}
	places = list_places(configuration, &n_places);
	if (!places)
		return configuration_fail_memory(ret_error);
	for (size_t i = 0; !r && i < n_places; i++) {
		r = check_directory(&places[i], ret_error);
		if (!r)
			r = check_occupant(&places[i], places[i].path, ret_error);
		if (!r && places[i].is_uds_path)
			r = check_occupant(&places[i], places[i].message_path, ret_error);
	}
	if (!r)
		r = check_places(places, n_places, ret_error);
	free(places);
	return r;
}
