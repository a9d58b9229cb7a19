/* SPDX-License-Identifier: Apache-2.0 */

/* Which answer an operator gets while others ask, and VMs go, in the same round of the loop. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/control.h"
#include "tests/unit/failing_calls.h"
#include "tests/unit/front_rig.h"

#define CLIENTS	  2
#define NO_ANSWER 1 /* no status of an End */

/* Clients are those of the control socket, in its order. */
static struct {
	struct front_rig front;
	int listener, clients[CLIENTS];
} rig;

static int listen_somewhere(struct sockaddr_un *ret_address, socklen_t *ret_len)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	*ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
	*ret_len = sizeof(*ret_address);
	/* The kernel finds a name of its own. */
	if (bind(fd, (struct sockaddr *)ret_address, sizeof(sa_family_t)) < 0 ||
	    listen(fd, CLIENTS) < 0 || getsockname(fd, (struct sockaddr *)ret_address, ret_len) < 0)
		return -1;
	return fd;
}

static int connect_client(const struct sockaddr_un *address, socklen_t len)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return connect(fd, (const struct sockaddr *)address, len) < 0 ? -1 : fd;
}

static int set_up(void **state)
{
	struct front *front = &rig.front.front;
	struct sockaddr_un address;
	socklen_t len;

	(void)state;
	front_rig_init(&rig.front);
	front->epoll = epoll_create1(EPOLL_CLOEXEC);
	front->now = 1000;
	/* The spawner has enough to do. */
	front->is_spawning = true;
	rig.front.device.has_frontend = true;
	rig.listener = listen_somewhere(&address, &len);
	if (rig.listener < 0 || !control_init(front, rig.listener, NULL))
		return -1;
	for (int i = 0; i < CLIENTS; i++) {
		rig.clients[i] = connect_client(&address, len);
		if (rig.clients[i] < 0)
			return -1;
		control_accept(front);
	}
	return endpoints_init(&rig.front.device.endpoints, 1) ? 0 : -1;
}

static int tear_down(void **state)
{
	(void)state;
	for (int i = 0; i < CLIENTS; i++) {
		close(rig.clients[i]);
		control_event(&rig.front.front, (size_t)i, EPOLLHUP);
	}
	control_run(&rig.front.front);
	free(rig.front.front.control);
	free(rig.front.device.endpoints.all);
	close(rig.listener);
	close(rig.front.front.epoll);
	return 0;
}

/* Said in a round of the loop; what the front makes of it comes with run(). */
static void ask(int client, enum control_command command, uint64_t cid)
{
	Control__Request request = CONTROL__REQUEST__INIT;
	struct channel_packet packet;

	request.version = CONTROL_VERSION;
	request.command = command;
	request.cid = cid;
	control_encode_request(&request, -1, &packet);
	assert_int_equal(channel_send(rig.clients[client], &packet), 0);
	control_event(&rig.front.front, (size_t)client, EPOLLIN);
}

static void run(void)
{
	rig.front.front.now++;
	control_run(&rig.front.front);
}

/* The status of its End. */
static int answer(int client)
{
	const Control__Reply *reply;
	struct channel_packet packet;
	int r = channel_receive(rig.clients[client], &packet);

	if (r == CHANNEL_E_AGAIN)
		return NO_ANSWER;
	assert_int_equal(r, 0);
	reply = control_decode_reply(&packet);
	assert_non_null(reply);
	assert_int_equal(reply->body_case, CONTROL__REPLY__BODY_END);
	return reply->end->status;
}

static void test_who_asked_for_a_replacement_hears_of_that_one_and_no_other(void **state)
{
	(void)state;
	ask(1, CONTROL_REPLACE, 3);
	run();
	assert_int_equal(answer(1), NO_ANSWER);
	/* One is over, and somebody whose turn comes before begins the next one. */
	handover_cancel(&rig.front.device);
	ask(0, CONTROL_REPLACE, 3);
	run();
	assert_int_equal(answer(1), -ECANCELED);
	assert_int_equal(answer(0), NO_ANSWER);
	handover_cancel(&rig.front.device);
	run();
	assert_int_equal(answer(0), -ECANCELED);
}

static void test_a_replacement_that_its_vm_did_not_live_to_see_is_not_done(void **state)
{
	(void)state;
	ask(0, CONTROL_REPLACE, 3);
	ask(1, CONTROL_REPLACE, 0);
	run();
	/* One at a time; and all that there are means this one. */
	assert_int_equal(answer(1), -EALREADY);
	handover_cancel(&rig.front.device);
	device_clear(&rig.front.device, &rig.front.front, 0);
	run();
	assert_int_equal(answer(0), -ECANCELED);
}

static void test_a_vm_that_goes_while_its_worker_is_awaited_is_not_there(void **state)
{
	(void)state;
	rig.front.device.worker = NULL;
	ask(0, CONTROL_REPLACE, 3);
	ask(1, CONTROL_REPLACE, 0);
	run();
	assert_int_equal(answer(0), NO_ANSWER);
	assert_int_equal(answer(1), NO_ANSWER);
	device_clear(&rig.front.device, &rig.front.front, 0);
	run();
	assert_int_equal(answer(0), -ENOENT);
	/* All of those that are left have been replaced. */
	assert_int_equal(answer(1), 0);
}

static void test_all_are_suspended_and_nobody_who_comes_later(void **state)
{
	(void)state;
	rig.front.device.worker = NULL;
	device_clear(&rig.front.device, &rig.front.front, 0);
	ask(0, CONTROL_SUSPEND, 0);
	run();
	assert_int_equal(answer(0), 0);
	assert_false(rig.front.device.is_suspended);
}

static void test_who_cannot_be_heard_is_told_to_try_again(void **state)
{
	struct sockaddr_un address;
	socklen_t len = sizeof(address);

	(void)state;
	close(rig.clients[1]);
	control_event(&rig.front.front, 1, EPOLLHUP);
	run();
	assert_int_equal(getsockname(rig.listener, (struct sockaddr *)&address, &len), 0);
	rig.clients[1] = connect_client(&address, len);
	failing_call_plan(CALL_EPOLL_CTL, -1, 1, ENOSPC);
	control_accept(&rig.front.front);
	assert_true(failing_call_has_come());
	assert_int_equal(answer(1), -EBUSY);
	/* The place is free for another try. */
	close(rig.clients[1]);
	rig.clients[1] = connect_client(&address, len);
	control_accept(&rig.front.front);
	ask(1, CONTROL_SUSPEND, 9);
	run();
	assert_int_equal(answer(1), -ENOENT);
}

/* Has the spawner been asked once more? */
static bool is_asked(int spawner)
{
	struct spawner_request request;

	return recv(spawner, &request, sizeof(request), MSG_DONTWAIT) == sizeof(request) &&
	       request.kind == SPAWNER_RELOAD_NOW;
}

static void test_who_waits_for_the_reload_of_another_is_not_forgotten(void **state)
{
	static char text[BANKS_TEXT_SIZE];
	struct front *front = &rig.front.front;
	struct banks banks = {.text = text};
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	front->banks = &banks;
	front->spawner = pair[0];
	ask(1, CONTROL_RELOAD, 0);
	run();
	ask(0, CONTROL_RELOAD, 0);
	run();
	assert_true(is_asked(pair[1]));
	assert_false(is_asked(pair[1]));
	/* Its turn in this round comes before there is room for it, and nothing else happens. */
	control_reloaded(front, 0);
	run();
	assert_int_equal(answer(1), 0);
	assert_true(control_deadline(front) <= front->now);
	run();
	assert_true(is_asked(pair[1]));
	control_reloaded(front, 0);
	run();
	assert_int_equal(answer(0), 0);
	close(pair[0]);
	close(pair[1]);
}

static void test_nobody_spins_for_a_client_that_reads_nothing(void **state)
{
	struct front *front = &rig.front.front;

	(void)state;
	ask(0, CONTROL_STATUS, 0);
	failing_call_plan(CALL_SENDMSG, -1, 1, EAGAIN);
	run();
	assert_true(failing_call_has_come());
	assert_int_equal(answer(0), NO_ANSWER);
	control_call(front);
	run();
	assert_true(control_deadline(front) > front->now + 1000);
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_RIG(test_who_asked_for_a_replacement_hears_of_that_one_and_no_other),
		WITH_RIG(test_a_replacement_that_its_vm_did_not_live_to_see_is_not_done),
		WITH_RIG(test_a_vm_that_goes_while_its_worker_is_awaited_is_not_there),
		WITH_RIG(test_all_are_suspended_and_nobody_who_comes_later),
		WITH_RIG(test_who_cannot_be_heard_is_told_to_try_again),
		WITH_RIG(test_who_waits_for_the_reload_of_another_is_not_forgotten),
		WITH_RIG(test_nobody_spins_for_a_client_that_reads_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
