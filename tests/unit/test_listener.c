/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/listener.h"
#include "policy/start.h"

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

	if (listener_open(path, &LISTENER_OWNER_ONLY, &listener, &failure))
		fail_msg("%s", failure.text);
	return listener;
}

static void expect_failure(int error, const char *words)
{
	struct listener listener = {.fd = -5};
	struct listener_failure failure = {""};

	assert_int_equal(listener_open(path, &LISTENER_OWNER_ONLY, &listener, &failure), -error);
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

static void test_a_socket_for_packets_is_made_and_replaced_alike(void **state)
{
	struct listener listener = {.fd = -1};
	struct listener_failure failure = {""};
	int type = 0;
	socklen_t len = sizeof(type);

	(void)state;
	for (int i = 0; i < 2; i++) { /* the second one finds the first's remains */
		if (listener_open_packets(path, &LISTENER_OWNER_ONLY, &listener, &failure))
			fail_msg("%s", failure.text);
		assert_int_equal(getsockopt(listener.fd, SOL_SOCKET, SO_TYPE, &type, &len), 0);
		assert_int_equal(type, SOCK_SEQPACKET);
		assert_int_equal(connect_to(path), -EPROTOTYPE);
		assert_int_equal(
			listener_open_packets(path, &LISTENER_OWNER_ONLY, &listener, &failure),
			-EADDRINUSE);
		assert_non_null(strstr(failure.text, "another program listens on it"));
		listener_close(&listener);
	}
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
	assert_int_equal(listener_open(too_long, &LISTENER_OWNER_ONLY, &listener, &failure),
			 -ENAMETOOLONG);
	assert_int_equal(listener_open("", &LISTENER_OWNER_ONLY, &listener, &failure), -EINVAL);
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

static void expect_access(struct listener_access wanted, mode_t mode, uid_t owner, gid_t group)
{
	struct listener listener = {.fd = -1};
	struct listener_failure failure = {""};
	struct stat found;

	if (listener_open(path, &wanted, &listener, &failure))
		fail_msg("%s", failure.text);
	assert_int_equal(lstat(path, &found), 0);
	assert_int_equal(found.st_mode, S_IFSOCK | mode);
	assert_int_equal(found.st_uid, owner);
	assert_int_equal(found.st_gid, group);
	assert_int_equal(found.st_ino, listener.inode);
	listener_unlink(&listener);
	assert_int_equal(access(path, F_OK), -1);
	listener_close(&listener);
}

static void test_access_changes_in_place_while_the_socket_is_ours(void **state)
{
	static const struct listener_access wanted = {0664, (uid_t)-1, (gid_t)-1};
	struct listener ours = open_at_path(), theirs;
	struct listener_failure failure = {""};
	struct stat found;

	(void)state;
	assert_int_equal(listener_change_access(&ours, &wanted, &failure), 0);
	assert_int_equal(lstat(path, &found), 0);
	assert_int_equal(found.st_mode, S_IFSOCK | 0664);
	assert_int_equal(found.st_ino, ours.inode);

	assert_int_equal(unlink(path), 0);
	assert_int_equal(listener_change_access(&ours, &wanted, &failure), -ENOENT);
	theirs = open_at_path();
	assert_int_equal(listener_change_access(&ours, &wanted, &failure), -EEXIST);
	assert_non_null(strstr(failure.text, "something else stands there now"));
	assert_int_equal(lstat(path, &found), 0);
	assert_int_equal(found.st_mode, S_IFSOCK | 0600);
	listener_unlink(&theirs);
	listener_close(&ours);
	listener_close(&theirs);
}

static void test_the_mode_is_as_asked_whatever_the_umask(void **state)
{
	static const mode_t modes[] = {0, 0600, 0660, 0666, 0777, 0060};
	mode_t old = umask(077);

	(void)state;
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
		expect_access((struct listener_access){modes[i], (uid_t)-1, (gid_t)-1}, modes[i],
			      geteuid(), getegid());
	assert_int_equal(umask(old), 077);
}

static void test_owner_and_group_may_be_named_that_are_there_already(void **state)
{
	(void)state;
	expect_access((struct listener_access){0660, geteuid(), getegid()}, 0660, geteuid(),
		      getegid());
}

/* Whom the directory is given to. Run as a user who is a member of OTHER_GROUP: for root only. */
#define OTHER_USER  65533
#define OTHER_GROUP 65532

static void as_user(void (*run)(void), uid_t user)
{
	static const gid_t groups[] = {OTHER_GROUP};
	int status;
	pid_t pid;

	assert_int_equal(chown(directory, OTHER_USER, OTHER_USER), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		if (setgroups(1, groups) || setresgid(user, user, user) ||
		    setresuid(user, user, user))
			_exit(77);
		run();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void need_root(void)
{
	if (!geteuid())
		return;
	print_message("skipped: only root can give a socket away\n");
	skip();
}

static void test_root_gives_the_socket_away(void **state)
{
	(void)state;
	need_root();
	expect_access((struct listener_access){0620, OTHER_USER, OTHER_GROUP}, 0620, OTHER_USER,
		      OTHER_GROUP);
	expect_access((struct listener_access){0600, OTHER_USER, (gid_t)-1}, 0600, OTHER_USER,
		      getegid());
}

static void give_to_own_group(void)
{
	expect_access((struct listener_access){0660, (uid_t)-1, OTHER_GROUP}, 0660, OTHER_USER,
		      OTHER_GROUP);
}

static void test_an_ordinary_user_gives_it_to_a_group_of_its_own(void **state)
{
	(void)state;
	need_root();
	as_user(give_to_own_group, OTHER_USER);
}

static void give_to_strangers(void)
{
	static const struct {
		struct listener_access access;
		const char *words;
	} strangers[] = {
		{{0660, (uid_t)-1, 7}, "cannot give it to group 7: "},
		{{0660, 8, OTHER_GROUP}, "cannot give it to user 8: "},
	};

	for (size_t i = 0; i < sizeof(strangers) / sizeof(strangers[0]); i++) {
		struct listener listener = {.fd = -5};
		struct listener_failure failure = {""};

		assert_int_equal(listener_open(path, &strangers[i].access, &listener, &failure),
				 -EPERM);
		assert_int_equal(listener.fd, -5);
		assert_non_null(strstr(failure.text, path));
		assert_non_null(strstr(failure.text, strangers[i].words));
		assert_non_null(strstr(failure.text, "CAP_CHOWN"));
		assert_non_null(strstr(failure.text, "--user"));
		assert_int_equal(access(path, F_OK), -1);
	}
}

static void test_what_the_kernel_refuses_is_told_and_leaves_no_socket(void **state)
{
	(void)state;
	need_root();
	as_user(give_to_strangers, OTHER_USER);
}

/* As --user has it: no right to open everything, but the right to choose ids. */
static void replace_what_was_given_away(void)
{
	static const struct listener_access wanted = {0600, OTHER_USER + 1, OTHER_GROUP};
	struct policy_failure policy_failure = {""};
	struct listener listener = {.fd = -1};
	struct listener_failure failure = {""};
	int death_signal = 0;

	assert_int_equal(prctl(PR_SET_PDEATHSIG, SIGTERM), 0);
	if (policy_become_user(OTHER_USER, OTHER_USER, &policy_failure))
		fail_msg("%s", policy_failure.text);
	for (int i = 0; i < 2; i++) {
		if (listener_open(path, &wanted, &listener, &failure))
			fail_msg("%s", failure.text);
		if (i == 0)
			listener_close(&listener);
	}
	/* It is not ours to connect to, so that a connect() alone can't tell it is stale. */
	assert_int_equal(connect_to(path), -EACCES);
	assert_int_equal(listener_open(path, &wanted, &listener, &failure), -EADDRINUSE);
	assert_non_null(strstr(failure.text, "another program listens on it"));
	listener_close(&listener);
	assert_int_equal(prctl(PR_GET_PDEATHSIG, &death_signal), 0);
	assert_int_equal(death_signal, SIGTERM);
}

static void test_a_stale_socket_that_was_given_away_is_replaced(void **state)
{
	(void)state;
	need_root();
	assert_int_equal(chmod(directory, 0755), 0);
	as_user(replace_what_was_given_away, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_directory, remove_directory)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_listener_is_for_its_owner_and_never_blocks),
		TEST(test_a_stale_socket_is_replaced),
		TEST(test_a_socket_in_use_is_left_alone),
		TEST(test_a_socket_of_another_type_is_left_alone),
		TEST(test_a_socket_for_packets_is_made_and_replaced_alike),
		TEST(test_what_is_not_a_socket_is_left_alone),
		TEST(test_a_missing_directory_is_told),
		TEST(test_a_path_too_long_is_refused),
		TEST(test_nothing_is_touched_while_the_directory_is_locked),
		TEST(test_the_directory_is_not_kept_locked),
		TEST(test_unlink_removes_our_socket_only),
		TEST(test_access_changes_in_place_while_the_socket_is_ours),
		TEST(test_the_mode_is_as_asked_whatever_the_umask),
		TEST(test_owner_and_group_may_be_named_that_are_there_already),
		TEST(test_root_gives_the_socket_away),
		TEST(test_an_ordinary_user_gives_it_to_a_group_of_its_own),
		TEST(test_what_the_kernel_refuses_is_told_and_leaves_no_socket),
		TEST(test_a_stale_socket_that_was_given_away_is_replaced),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
