/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <grp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/peers.h"

static const gid_t groups[] = {50, 60};

static bool passes(const struct peer_filter *filter, uid_t user)
{
	return peers_pass(filter, user, groups, 2);
}

static void test_without_lists_everybody_may(void **state)
{
	const struct peer_filter filter = {0};

	(void)state;
	assert_false(peers_are_limited(&filter));
	assert_true(passes(&filter, 0));
}

static void test_who_is_denied_may_not_whatever_is_allowed(void **state)
{
	struct peer_filter filter = {.denied_users = {{1000}, 1}};

	(void)state;
	assert_true(peers_are_limited(&filter));
	assert_false(passes(&filter, 1000));
	assert_true(passes(&filter, 1001));
	filter.allowed_users = (struct peer_ids){{1000, 1001}, 2};
	assert_false(passes(&filter, 1000));
	assert_true(passes(&filter, 1001));
	filter.denied_groups = (struct peer_ids){{60}, 1};
	assert_false(passes(&filter, 1001));
}

static void test_where_some_are_allowed_nobody_else_may_root_neither(void **state)
{
	struct peer_filter filter = {.allowed_users = {{1000}, 1}};

	(void)state;
	assert_true(passes(&filter, 1000));
	assert_false(passes(&filter, 0));
	/* Whom either list allows. */
	filter.allowed_groups = (struct peer_ids){{70, 60}, 2};
	assert_true(passes(&filter, 0));
	filter.allowed_groups.ids[1] = 61;
	assert_false(passes(&filter, 0));
	assert_true(passes(&filter, 1000));
	filter.allowed_users.n = 0;
	assert_false(passes(&filter, 1000));
	/* What stands behind the end of a list is not in it. */
	filter.allowed_groups = (struct peer_ids){{70, 60}, 1};
	assert_false(passes(&filter, 1000));
}

static void test_the_kernel_says_who_is_at_the_other_end(void **state)
{
	struct peer_filter filter = {.allowed_users = {{geteuid()}, 1}};
	struct peer peer;
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(peers_judge(&filter, pair[0], &peer), 0);
	assert_int_equal(peer.user, geteuid());
	assert_int_equal(peer.group, getegid());
	filter = (struct peer_filter){.denied_users = {{geteuid()}, 1}};
	peer = (struct peer){0};
	assert_int_equal(peers_judge(&filter, pair[0], &peer), PEERS_E_DENIED);
	assert_int_equal(peer.user, geteuid());
	filter = (struct peer_filter){.allowed_groups = {{getegid()}, 1}};
	assert_int_equal(peers_judge(&filter, pair[0], &peer), 0);
	filter = (struct peer_filter){.denied_groups = {{getegid()}, 1}};
	assert_int_equal(peers_judge(&filter, pair[0], &peer), PEERS_E_DENIED);
	close(pair[0]);
	close(pair[1]);
}

static void test_groups_beside_the_effective_one_count(void **state)
{
	struct peer_filter filter = {0};
	gid_t mine[64];
	int n, pair[2];
	struct peer peer;

	(void)state;
	if (geteuid() == 0)
		assert_int_equal(setgroups(1, &(gid_t){4242}), 0);
	n = getgroups(64, mine);
	for (int i = 0; i < n; i++)
		if (mine[i] != getegid())
			filter.allowed_groups = (struct peer_ids){{mine[i]}, 1};
	if (filter.allowed_groups.n == 0) {
		print_message("skipped: this user is in one group only\n");
		skip();
	}
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(peers_judge(&filter, pair[0], &peer), 0);
	filter.denied_groups = filter.allowed_groups;
	assert_int_equal(peers_judge(&filter, pair[0], &peer), PEERS_E_DENIED);
	close(pair[0]);
	close(pair[1]);
}

static void test_what_is_no_unix_socket_has_no_user(void **state)
{
	const struct peer_filter filter = {.denied_users = {{geteuid()}, 1}};
	struct peer peer;
	int pipes[2], udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	(void)state;
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(peers_judge(&filter, pipes[0], &peer), PEERS_E_UNKNOWN);
	if (udp >= 0)
		assert_int_equal(peers_judge(&filter, udp, &peer), PEERS_E_UNKNOWN);
	close(pipes[0]);
	close(pipes[1]);
	close(udp);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_without_lists_everybody_may),
		cmocka_unit_test(test_who_is_denied_may_not_whatever_is_allowed),
		cmocka_unit_test(test_where_some_are_allowed_nobody_else_may_root_neither),
		cmocka_unit_test(test_the_kernel_says_who_is_at_the_other_end),
		cmocka_unit_test(test_groups_beside_the_effective_one_count),
		cmocka_unit_test(test_what_is_no_unix_socket_has_no_user),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
