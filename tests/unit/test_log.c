/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/log.h"

/* stderr of the processes that log, and the journal's own socket. */
struct place {
	int stream[2];
	int journal;
	char path[64];
};

static int set_up(void **state)
{
	struct place *place = calloc(1, sizeof(*place));
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char directory[] = "/tmp/test-log-XXXXXX";

	*state = place;
	if (!place || !mkdtemp(directory) ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, place->stream) < 0)
		return -1;
	snprintf(place->path, sizeof(place->path), "%s/socket", directory);
	memcpy(address.sun_path, place->path, strlen(place->path) + 1);
	place->journal = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	return bind(place->journal, (struct sockaddr *)&address, sizeof(address));
}

static int tear_down(void **state)
{
	struct place *place = *state;

	close(place->stream[0]);
	close(place->stream[1]);
	close(place->journal);
	unlink(place->path);
	*strrchr(place->path, '/') = '\0';
	rmdir(place->path);
	free(place);
	return 0;
}

/* In a process of its own, with that stderr, which JOURNAL_STREAM names if is_named. */
static void run(struct place *place, bool is_named, void (*say)(struct place *place))
{
	pid_t pid = fork();
	struct stat stream;
	char text[64];
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		dup2(place->stream[1], STDERR_FILENO);
		fstat(STDERR_FILENO, &stream);
		snprintf(text, sizeof(text), "%ju:%ju", (uintmax_t)stream.st_dev,
			 (uintmax_t)stream.st_ino + !is_named);
		setenv("JOURNAL_STREAM", text, 1);
		log_open(LOG_INFO);
		say(place);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* "" where nothing came. */
static const char *next(int fd)
{
	static char text[4096];
	ssize_t n = recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT);

	text[n > 0 ? n : 0] = '\0';
	return text;
}

static void say_some(struct place *place)
{
	log_join_journal(place->path);
	log_event(LOG_ERR | LOG_AS(LOG_ID_WORKER_LOST), 5, "worker lost");
	log_event(LOG_DEBUG, 5, "not wanted");
	log_event(LOG_NOTICE, LOG_NO_VM, "one\nMESSAGE_ID=x");
}

static void test_the_journal_gets_fields(void **state)
{
	struct place *place = *state;
	const char *entry;

	run(place, true, say_some);
	entry = next(place->journal);
	assert_non_null(strstr(entry, "PRIORITY=3\n"));
	assert_non_null(strstr(entry, "SYSLOG_IDENTIFIER=vsockd\n"));
	assert_non_null(strstr(entry, "\nMESSAGE_ID="));
	assert_int_equal(strcspn(strstr(entry, "MESSAGE_ID=") + 11, "\n"), 32);
	assert_non_null(strstr(entry, "\nVSOCKD_CID=5\n"));
	assert_non_null(strstr(entry, "\nMESSAGE=VM 5: worker lost\n"));
	/* No text makes a field, and a line of no VM has none. */
	assert_string_equal(next(place->journal), "PRIORITY=5\nSYSLOG_IDENTIFIER=vsockd\n"
						  "MESSAGE=one MESSAGE_ID=x\n");
	assert_string_equal(next(place->journal), "");
	assert_string_equal(next(place->stream[0]), "");
}

static void say_settled(struct place *place)
{
	log_join_journal(place->path);
	log_settle();
	/* As behind the filter: no other fd is there. */
	closefrom(STDERR_FILENO + 1);
	log_event(LOG_ERR, LOG_NO_VM, "settled");
}

static void test_the_front_says_it_over_its_stderr(void **state)
{
	struct place *place = *state;

	run(place, true, say_settled);
	assert_non_null(strstr(next(place->journal), "MESSAGE=settled\n"));
}

static void test_lines_of_another_stream_are_plain(void **state)
{
	struct place *place = *state;

	run(place, false, say_some);
	assert_string_equal(next(place->stream[0]), "vm=5 error: worker lost\n"
						    "vm=- notice: one MESSAGE_ID=x\n");
	assert_string_equal(next(place->journal), "");
}

static void say_to_nobody(struct place *place)
{
	log_join_journal("/nonexistent/socket");
	log_join_journal(place->path + strlen(place->path));
	log_event(LOG_WARNING | LOG_AS(LOG_ID_READY), 5, "x");
}

static void test_without_its_socket_the_journal_gets_priorities(void **state)
{
	struct place *place = *state;

	run(place, true, say_to_nobody);
	assert_string_equal(next(place->stream[0]), "<4>vm=5 warning: x\n");
}

static void say_too_much(struct place *place)
{
	char rest[16];

	log_join_journal(place->path);
	for (int i = 0; i < 10000; i++)
		log_event(LOG_INFO, LOG_NO_VM, "line");
	/* The journal takes some, and is asked again. */
	for (int i = 0; i < 4; i++)
		(void)!recv(place->journal, rest, sizeof(rest), MSG_DONTWAIT);
	log_event(LOG_INFO, LOG_NO_VM, "last");
}

static void test_a_journal_that_takes_nothing_is_not_waited_for(void **state)
{
	struct place *place = *state;
	unsigned int n = 4, n_left_out = 0;
	bool saw_last = false;

	run(place, true, say_too_much);
	for (const char *entry = next(place->journal); *entry; entry = next(place->journal)) {
		const char *message = strstr(entry, "MESSAGE=");

		assert_non_null(message);
		if (strcmp(message, "MESSAGE=line\n") == 0)
			n++;
		else if (strcmp(message, "MESSAGE=last\n") == 0)
			saw_last = true;
		else
			assert_int_equal(sscanf(message, "MESSAGE=%u lines left out", &n_left_out),
					 1);
	}
	assert_true(saw_last && n_left_out > 0);
	assert_int_equal(n + n_left_out, 10000);
}

static void test_a_copy_has_whole_lines_whatever_their_level(void **state)
{
	char text[40];

	(void)state;
	log_open(LOG_ERR);
	log_copy(text, sizeof(text));
	log_event(LOG_DEBUG, 5, "one");
	log_event(LOG_DEBUG, LOG_NO_VM, "a line that is too long for what is left of it");
	log_event(LOG_DEBUG, LOG_NO_VM, "two");
	log_copy(NULL, 0);
	log_event(LOG_DEBUG, LOG_NO_VM, "three");
	assert_string_equal(text, "VM 5: one\ntwo\n");
}

#define WITH_PLACE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_PLACE(test_the_journal_gets_fields),
		WITH_PLACE(test_the_front_says_it_over_its_stderr),
		WITH_PLACE(test_lines_of_another_stream_are_plain),
		WITH_PLACE(test_without_its_socket_the_journal_gets_priorities),
		WITH_PLACE(test_a_journal_that_takes_nothing_is_not_waited_for),
		cmocka_unit_test(test_a_copy_has_whole_lines_whatever_their_level),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
