/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/listener.h"

static char directory[32];
static char path[64];

static int make_directory(void **state)
{
	(void)state;
	(void)snprintf(directory, sizeof(directory), "/tmp/listener-XXXXXX");
	if (!mkdtemp(directory))
		return -1;
	(void)snprintf(path, sizeof(path), "%s/socket", directory);
	return 0;
}

static int remove_directory(void **state)
{
	(void)state;
	(void)unlink(path);
	return rmdir(directory);
}

static int connect_to(const char *where)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int status;

	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", where);
	status = connect(fd, (struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
	close(fd);
	return status;
}

static struct listener open_at_path(void)
{
	struct listener listener = {.fd = -1};
	struct listener_failure failure = {""};

	if (listener_open(path, &listener, &failure))
		fail_msg("%s", failure.text);
	return listener;
}

static void expect_failure(int error, const char *words)
{
	struct listener listener = {.fd = -5};
	struct listener_failure failure = {""};

	assert_int_equal(listener_open(path, &listener, &failure), -error);
	assert_int_equal(listener.fd, -5);
	assert_non_null(strstr(failure.text, path));
	assert_non_null(strstr(failure.text, words));
}

static void test_a_listener_is_for_its_owner_and_never_blocks(void **state)
{
	struct listener listener;
	struct stat found;
	mode_t old = umask(0);

	(void)state;
	listener = open_at_path();
	assert_int_equal(umask(old), 0); /* left as it was */
	assert_int_equal(lstat(path, &found), 0);
	assert_int_equal(found.st_mode, S_IFSOCK | S_IRUSR | S_IWUSR);
	assert_true(fcntl(listener.fd, F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(listener.fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(connect_to(path), 0);
	listener_close(&listener);
	listener_close(&listener);
}

static void test_a_stale_socket_is_replaced(void **state)
{
	struct listener first = open_at_path();
	struct listener second;

	(void)state;
	listener_close(&first);
	assert_int_equal(connect_to(path), -ECONNREFUSED);
	second = open_at_path();
	assert_int_equal(connect_to(path), 0);
	listener_close(&second);
}

static void test_a_socket_in_use_is_left_alone(void **state)
{
	struct listener listener = open_at_path();

	(void)state;
	expect_failure(EADDRINUSE, "another program listens on it");
	assert_int_equal(connect_to(path), 0);
	listener_close(&listener);
}

static void test_a_socket_of_another_type_is_left_alone(void **state)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	(void)state;
	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	expect_failure(EADDRINUSE, "can't be told");
	assert_int_equal(access(path, F_OK), 0);
	close(fd);
}

static void test_what_is_not_a_socket_is_left_alone(void **state)
{
	char target[64];

	(void)state;
	close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	expect_failure(EEXIST, "not a socket");
	assert_int_equal(unlink(path), 0);

	assert_int_equal(mkdir(path, 0700), 0);
	expect_failure(EEXIST, "not a socket");
	assert_int_equal(rmdir(path), 0);

	/* A link is not followed, not even to a socket that is stale. */
	(void)snprintf(target, sizeof(target), "%s/target", directory);
	assert_int_equal(symlink(target, path), 0);
	expect_failure(EEXIST, "not a socket");
}

static void test_a_missing_directory_is_told(void **state)
{
	char saved[sizeof(path)];

	(void)state;
	memcpy(saved, path, sizeof(path));
	(void)snprintf(path, sizeof(path), "%s/none/socket", directory);
	expect_failure(ENOENT, "directory");
	memcpy(path, saved, sizeof(path));
}

static void test_a_path_too_long_is_refused(void **state)
{
	char too_long[200];
	struct listener listener = {.fd = -5};
	struct listener_failure failure;

	(void)state;
	memset(too_long, 'x', sizeof(too_long) - 1);
	too_long[sizeof(too_long) - 1] = '\0';
	assert_int_equal(listener_open(too_long, &listener, &failure), -ENAMETOOLONG);
	assert_int_equal(listener_open("", &listener, &failure), -EINVAL);
	assert_int_equal(listener.fd, -5);
}

static void test_nothing_is_touched_while_the_directory_is_locked(void **state)
{
	struct listener first = open_at_path();
	struct stat before, after;
	int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	(void)state;
	listener_close(&first);
	assert_int_equal(lstat(path, &before), 0);
	assert_int_equal(flock(fd, LOCK_EX), 0);
	expect_failure(EBUSY, "locked");
	assert_int_equal(lstat(path, &after), 0);
	assert_int_equal(after.st_ino, before.st_ino);
	close(fd);
	first = open_at_path();
	listener_close(&first);
}

static void test_the_directory_is_not_kept_locked(void **state)
{
	struct listener listener = open_at_path();
	int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	(void)state;
	assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
	close(fd);
	listener_close(&listener);
}

static void test_unlink_removes_our_socket_only(void **state)
{
	struct listener ours = open_at_path();
	struct listener theirs;

	(void)state;
	assert_int_equal(unlink(path), 0);
	theirs = open_at_path(); /* while ours is open its inode number isn't free */
	listener_unlink(&ours);
	assert_int_equal(connect_to(path), 0);
	listener_unlink(&theirs);
	assert_int_equal(access(path, F_OK), -1);
	listener_unlink(&theirs);
	listener_close(&ours);
	listener_close(&theirs);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_directory, remove_directory)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_listener_is_for_its_owner_and_never_blocks),
		TEST(test_a_stale_socket_is_replaced),
		TEST(test_a_socket_in_use_is_left_alone),
		TEST(test_a_socket_of_another_type_is_left_alone),
		TEST(test_what_is_not_a_socket_is_left_alone),
		TEST(test_a_missing_directory_is_told),
		TEST(test_a_path_too_long_is_refused),
		TEST(test_nothing_is_touched_while_the_directory_is_locked),
		TEST(test_the_directory_is_not_kept_locked),
		TEST(test_unlink_removes_our_socket_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
