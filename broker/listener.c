/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* A lock is held for the time of a bind(); but somebody else may hold it for long. */
#define LOCK_ATTEMPTS 100
#define LOCK_PAUSE_MS 20

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

#define AUTO_CLOSE __attribute__((cleanup(close_fd)))

__attribute__((format(printf, 4, 5))) static int
fail(struct listener_failure *ret_failure, int error, const char *path, const char *format, ...)
{
	va_list arguments;
	int len = snprintf(ret_failure->text, sizeof(ret_failure->text), "socket \"%s\": ", path);

	if (len < 0 || (size_t)len >= sizeof(ret_failure->text))
		return -error;
	va_start(arguments, format);
	(void)vsnprintf(ret_failure->text + len, sizeof(ret_failure->text) - (size_t)len, format,
			arguments);
	va_end(arguments);
	return -error;
}

static int fill_address(const char *path, struct sockaddr_un *ret_address,
			struct listener_failure *ret_failure)
{
	if (!*path)
		return fail(ret_failure, EINVAL, path, "the path is empty");
	if (strlen(path) >= sizeof(ret_address->sun_path))
		return fail(ret_failure, ENAMETOOLONG, path, "the path is too long");
	*ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
	memcpy(ret_address->sun_path, path, strlen(path) + 1);
	return 0;
}

static int open_directory(const char *path)
{
	char directory[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
	const char *slash = strrchr(path, '/');
	size_t len;

	if (!slash)
		return open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	len = slash == path ? 1 : (size_t)(slash - path);
	memcpy(directory, path, len);
	directory[len] = '\0';
	return open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/*
 * flock() knows no time limit, and no event tells that a lock is free, so this
 * asks again: others lock directories too, some for good.
 */
static bool lock(int directory)
{
	for (int i = 0; i < LOCK_ATTEMPTS; i++) {
		if (!flock(directory, LOCK_EX | LOCK_NB))
			return true;
		if (errno != EWOULDBLOCK && errno != EINTR)
			return false;
		(void)poll(NULL, 0, LOCK_PAUSE_MS);
	}
	return false;
}

/* What connect() says: 0, or the errno. */
static int try_connect(const struct sockaddr_un *address, int type)
{
	AUTO_CLOSE int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return errno;
	return connect(fd, (const struct sockaddr *)address, sizeof(*address)) ? errno : 0;
}

/*
 * A predecessor may have given the socket away to an owner whom alone its mode
 * lets connect. Who may choose user ids asks as that owner; for others the
 * change of id does nothing.
 */
static int probe(const struct sockaddr_un *address, int type, uid_t owner)
{
	int error = try_connect(address, type), death_signal = 0;
	uid_t own;

	if (error != EACCES)
		return error;
	(void)prctl(PR_GET_PDEATHSIG, &death_signal);
	own = (uid_t)setfsuid(owner);
	error = try_connect(address, type);
	(void)setfsuid(own);
	(void)prctl(PR_SET_PDEATHSIG, death_signal); /* which a change of ids clears */
	return error;
}

/* Only a socket that is there and that provably nobody listens on is removed. */
static int remove_stale(const struct sockaddr_un *address, int type,
			struct listener_failure *ret_failure)
{
	const char *path = address->sun_path;
	struct stat found;
	int error;

	if (lstat(path, &found)) {
		error = errno;
		if (error == ENOENT)
			return 0;
		return fail(ret_failure, error, path, "%s", strerror(error));
	}
	if (!S_ISSOCK(found.st_mode))
		return fail(ret_failure, EEXIST, path, "exists and is not a socket");
	error = probe(address, type, found.st_uid);
	if (!error || error == EAGAIN) /* EAGAIN: its backlog is full */
		return fail(ret_failure, EADDRINUSE, path, "another program listens on it");
	if (error != ECONNREFUSED)
		return fail(ret_failure, EADDRINUSE, path,
			    "exists, and whether it is in use can't be told: %s", strerror(error));
	if (unlink(path) && errno != ENOENT)
		return fail(ret_failure, errno, path, "a stale socket can't be removed: %s",
			    strerror(errno));
	return 0;
}

/* Bound for us alone from the first moment: a chmod() later would leave a gap. */
static int bind_private(int fd, const struct sockaddr_un *address)
{
	mode_t old = umask(S_IXUSR | S_IRWXG | S_IRWXO);
	int status = bind(fd, (const struct sockaddr *)address, sizeof(*address)) ? -errno : 0;

	(void)umask(old);
	return status;
}

static int fail_give(const char *path, const char *what, unsigned int id, const char *advice,
		     struct listener_failure *ret_failure)
{
	int error = errno;

	return fail(ret_failure, error, path, "cannot give it to %s %u: %s%s", what, id,
		    strerror(error), error == EPERM ? advice : "");
}

/*
 * The directory may belong to others, who could put a link or somebody's file in
 * the place of what was bound a moment ago. So the file is taken hold of first,
 * and must be what bind_private() makes.
 */
static int open_bound(const char *path, struct stat *ret_made, struct listener_failure *ret_failure)
{
	struct stat made;
	int taken;

	AUTO_CLOSE int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &made))
		return fail(ret_failure, errno, path, "cannot be found again: %s", strerror(errno));
	if (!S_ISSOCK(made.st_mode) || made.st_nlink != 1 || made.st_uid != geteuid() ||
	    made.st_mode & (S_IXUSR | S_IRWXG | S_IRWXO))
		return fail(ret_failure, EEXIST, path, "was replaced while it was made");
	*ret_made = made;
	taken = fd;
	fd = -1;
	return taken;
}

/* Group before owner: an ordinary user can change the group of its own file only. */
static int give_access(int file, const char *path, const struct listener_access *access,
		       struct listener_failure *ret_failure)
{
	char link[32];

	if (access->group != (gid_t)-1 &&
	    fchownat(file, "", (uid_t)-1, access->group, AT_EMPTY_PATH))
		return fail_give(path, "group", access->group,
				 "; join that group, or start vsockd as root (CAP_CHOWN), with "
				 "--user to go on as another user",
				 ret_failure);
	if (access->owner != (uid_t)-1 &&
	    fchownat(file, "", access->owner, (gid_t)-1, AT_EMPTY_PATH))
		return fail_give(path, "user", access->owner,
				 "; start vsockd as that user, or as root (CAP_CHOWN), with "
				 "--user to go on as another user",
				 ret_failure);
	/* There is no fchmod() for such an fd before Linux 6.6. */
	(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", file);
	if (chmod(link, access->mode))
		return fail(ret_failure, errno, path, "cannot set its mode to %04o: %s",
			    (unsigned int)access->mode, strerror(errno));
	return 0;
}

static int bind_and_listen(const struct sockaddr_un *address, int type,
			   const struct listener_access *access, struct listener *ret_listener,
			   struct listener_failure *ret_failure)
{
	const char *path = address->sun_path;
	struct stat made = {0};
	int status;

	AUTO_CLOSE int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return fail(ret_failure, errno, path, "%s", strerror(errno));
	status = bind_private(fd, address);
	if (status)
		return fail(ret_failure, -status, path, "cannot bind: %s", strerror(-status));
	AUTO_CLOSE int file = open_bound(path, &made, ret_failure);
	if (file < 0)
		return file;
	/* Before listen() a connect() is refused, whoever may. */
	status = give_access(file, path, access, ret_failure);
	if (!status && listen(fd, SOMAXCONN))
		status = fail(ret_failure, errno, path, "cannot listen: %s", strerror(errno));
	if (status) {
		(void)unlink(path);
		return status;
	}
	ret_listener->fd = fd;
	ret_listener->device = made.st_dev;
	ret_listener->inode = made.st_ino;
	fd = -1;
	return 0;
}

static int open_socket(const char *path, int type, const struct listener_access *access,
		       struct listener *ret_listener, struct listener_failure *ret_failure)
{
	struct sockaddr_un address;
	struct listener listener = {.fd = -1, .path = path};
	int status = fill_address(path, &address, ret_failure);

	if (status)
		return status;
	AUTO_CLOSE int directory = open_directory(path);
	if (directory < 0)
		return fail(ret_failure, errno, path, "its directory can't be opened: %s",
			    strerror(errno));
	if (!lock(directory))
		return fail(ret_failure, EBUSY, path, "another program has locked its directory");
	status = remove_stale(&address, type, ret_failure);
	if (!status)
		status = bind_and_listen(&address, type, access, &listener, ret_failure);
	if (!status)
		*ret_listener = listener;
	return status;
}

int listener_open(const char *path, const struct listener_access *access,
		  struct listener *ret_listener, struct listener_failure *ret_failure)
{
	return open_socket(path, SOCK_STREAM, access, ret_listener, ret_failure);
}

int listener_open_packets(const char *path, const struct listener_access *access,
			  struct listener *ret_listener, struct listener_failure *ret_failure)
{
	return open_socket(path, SOCK_SEQPACKET, access, ret_listener, ret_failure);
}

int listener_change_access(const struct listener *listener, const struct listener_access *access,
			   struct listener_failure *ret_failure)
{
	struct stat found;

	AUTO_CLOSE int file = open(listener->path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (file < 0 || fstat(file, &found))
		return fail(ret_failure, errno, listener->path, "cannot be found: %s",
			    strerror(errno));
	if (found.st_dev != listener->device || found.st_ino != listener->inode)
		return fail(ret_failure, EEXIST, listener->path, "something else stands there now");
	return give_access(file, listener->path, access, ret_failure);
}

/* What is not there needs no removal. */
static int unlink_error(void)
{
	return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
}

int listener_unlink(const struct listener *listener)
{
	struct stat found;

	/* Locked like listener_open(), or else a successor's could be hit in between. */
	AUTO_CLOSE int directory = open_directory(listener->path);
	if (directory < 0)
		return unlink_error();
	if (!lock(directory))
		return -EBUSY;
	if (lstat(listener->path, &found))
		return unlink_error();
	if (!S_ISSOCK(found.st_mode) || found.st_dev != listener->device ||
	    found.st_ino != listener->inode)
		return 0;
	return unlink(listener->path) ? unlink_error() : 0;
}

void listener_close(struct listener *listener)
{
	close_fd(&listener->fd);
	listener->fd = -1;
}
