/* SPDX-License-Identifier: Apache-2.0 */

/* What vsockd says, to whom, and how much of it. */

#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/socket.h"
#include "tests/integration/setup.h"

#define LIMIT SETUP_LIMIT

/* ---- the log under a service manager ---- */

static bool log_begins_with(struct daemon *daemon, const char *with)
{
	char line[256] = "";
	FILE *log = fopen(daemon_path(daemon, "log"), "r");

	assert_non_null(log);
	assert_non_null(fgets(line, sizeof(line), log));
	fclose(log);
	return strncmp(line, with, strlen(with)) == 0;
}

static void run_with_journal(const char *journal, ino_t inode_added, const char *begin)
{
	const char *const arguments[] = {"",	     "--worker", getenv("VSOCKD_WORKER"),
					 "--socket", "@/s",	 "--uds-path",
					 "@/u",	     NULL};
	struct daemon daemon = {.pid = 0};
	struct stat log;
	char text[64];
	FILE *file;

	assert_int_equal(daemon_prepare(&daemon), 0);
	file = fopen(daemon_path(&daemon, "log"), "w");
	assert_non_null(file);
	assert_int_equal(fstat(fileno(file), &log), 0);
	fclose(file);
	snprintf(text, sizeof(text), "%ju:%ju", (uintmax_t)log.st_dev,
		 (uintmax_t)(log.st_ino + inode_added));
	setenv("JOURNAL_STREAM", journal ? journal : text, 1);
	assert_int_equal(daemon_start(&daemon, arguments, "s", LIMIT), 0);
	unsetenv("JOURNAL_STREAM");
	assert_int_equal(daemon_wait_log(&daemon, "ready: ", LIMIT), 0);
	if (!log_begins_with(&daemon, begin))
		fail_msg("the log does not begin with %s", begin);
	assert_int_equal(daemon_stop(&daemon, LIMIT), 0);
}

static void test_priorities_are_for_the_journal_alone(void **state)
{
	(void)state;
	/* A journal that is there is talked to itself. */
	if (access("/run/systemd/journal/socket", F_OK) < 0)
		run_with_journal(NULL, 0, "<");
	run_with_journal(NULL, 1, "vm=- ");
	run_with_journal("nonsense", 0, "vm=- ");
}

/* ---- how much ---- */

#define N_REFUSED 300

struct said {
	uint64_t n_refused, n_left_out;
};

static struct said count_said(struct setup *setup)
{
	FILE *log = fopen(daemon_path(&setup->daemon, "log"), "r");
	struct said said = {0};
	char line[1024];
	uint64_t n;

	assert_non_null(log);
	while (fgets(line, sizeof(line), log)) {
		said.n_refused += strstr(line, "guest refused") != NULL;
		if (sscanf(line, "vm=3 warning: %" SCNu64 " lines left out", &n) == 1)
			said.n_left_out += n;
	}
	fclose(log);
	return said;
}

static void test_a_guest_cannot_fill_the_log_and_what_is_left_out_is_counted(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	int64_t deadline;
	struct said said;

	for (uint32_t i = 0; i < N_REFUSED; i++)
		assert_null(guest_connect_wait(guest, PACKET_HOST_CID, 7000 + i, LIMIT));
	/* Nothing else happens, and it is told all the same. */
	deadline = deadline_in(LIMIT);
	for (said = count_said(setup); said.n_refused + said.n_left_out < N_REFUSED;
	     said = count_said(setup)) {
		if (deadline_left(deadline) == 0)
			fail_msg("%" PRIu64 " lines and %" PRIu64 " left out", said.n_refused,
				 said.n_left_out);
		poll(NULL, 0, 20);
	}
	assert_int_equal(said.n_refused + said.n_left_out, N_REFUSED);
	assert_true(said.n_refused < N_REFUSED / 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_priorities_are_for_the_journal_alone),
		cmocka_unit_test_setup_teardown(
			test_a_guest_cannot_fill_the_log_and_what_is_left_out_is_counted,
			setup_start_one, setup_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
