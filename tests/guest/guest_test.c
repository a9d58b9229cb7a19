/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a real Linux guest and host programs see of vsockd.
 *
 *   guest_test --test|--packed|--demo KERNEL INITRAMFS ACCELERATOR BACK-END...
 *
 * Two processes: one runs the steps, the other waits for it with a time limit
 * and, however it ends, leaves no process and no file behind. tests/guest/run
 * starts it with the right arguments.
 */

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/guest/host.h"
#include "tests/guest/machine.h"

#define MIB	       (UINT64_C(1) << 20)
#define TRANSFER_BYTES (64 * MIB)
#define N_IN_A_ROW     200
#define N_AT_ONCE      32
#define N_REPLACEMENTS 10
#define N_MESSAGES     2000
#define BOOT_MS	       90000
#define SOON_MS	       1000  /* but for what the machine is to blame for */
#define WAIT_MS	       30000 /* for what ends only a wait */
#define ALL_SECONDS    400

/* The host's ports and the guest's: any but the control port. */
#define PORT		      1100u
#define ECHO_PORT	      1200u
#define HOST_CID	      2u
#define PORT_WITHOUT_LISTENER 1999u

/* Shared with the waiting process, which has the last word. */
struct score {
	atomic_uint n_passed;
	atomic_uint n_failed;
	bool is_demo;
};

struct test {
	struct machine machine;
	struct agent agent, sibling;
	struct score *score;
};

static void check(struct test *test, bool is_true, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
static void check(struct test *test, bool is_true, const char *format, ...)
{
	va_list arguments;

	atomic_fetch_add(is_true ? &test->score->n_passed : &test->score->n_failed, 1);
	if (test->score->is_demo)
		printf("           %s ", is_true ? "yes:" : "NO: ");
	else
		printf("%s - guest: ", is_true ? "ok" : "not ok");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
}

static uint64_t mib_per_second(uint64_t n_bytes, uint64_t ms)
{
	return n_bytes * 1000 / MIB / (ms ? ms : 1);
}

/* The agent's echo server does not outlive its guest. */
static bool start_echo(struct agent *agent)
{
	struct agent_reply reply;

	return agent_tell(agent, "echo %u", ECHO_PORT) == 0 &&
	       agent_wait_reply(agent, &reply) == 0 && reply.error == 0;
}

static unsigned int n_echoing(struct agent *agent)
{
	struct agent_reply reply;

	if (agent_tell(agent, "echoing") < 0 || agent_wait_reply(agent, &reply) < 0)
		return UINT_MAX;
	return (unsigned int)reply.n_bytes;
}

/* One line there and back on a connection to the guest's echo server. */
static bool is_echoed(int fd)
{
	static const char line[] = "there and back\n";
	char answer[STREAM_LINE_MAX];

	return send(fd, line, sizeof(line) - 1, MSG_NOSIGNAL) == sizeof(line) - 1 &&
	       stream_read_line(fd, answer) == sizeof(line) - 2;
}

static bool is_soon(const struct stopwatch *watch)
{
	return stopwatch_spent(watch) < SOON_MS;
}

static bool guest_is_reached(void)
{
	int fd = host_connect(ECHO_PORT, WAIT_MS);
	bool is_reached = fd >= 0 && is_echoed(fd);

	if (fd >= 0)
		close(fd);
	return is_reached;
}

static bool boot(struct test *test)
{
	uint64_t start = host_now_ms();
	bool is_ready = machine_start_qemu(&test->machine) == 0 &&
			agent_wait(&test->agent, BOOT_MS, NULL) == 0;

	check(test, is_ready, "a Linux guest boots and its agent reaches the host (%.1f s)",
	      (double)(host_now_ms() - start) / 1000);
	return is_ready && start_echo(&test->agent);
}

static bool step_start(struct test *test)
{
	int error = agent_listen(&test->agent, HOST_UDS_NAME);

	if (error == 0)
		error = agent_listen(&test->sibling, HOST_SIBLING_NAME);
	if (error == 0)
		error = machine_start_back_end(&test->machine);
	check(test, error == 0,
	      "the back-end starts and listens for the VMM and for host programs");
	if (error < 0 || !boot(test))
		return false;
	if (test->machine.is_packed)
		check(test, machine_has_feature("VIRTIO_F_RING_PACKED"), "its rings are packed");
	return true;
}

static bool step_confinement(struct test *test)
{
	pid_t worker = machine_worker(&test->machine);

	check(test, worker > 0 && machine_is_confined(worker),
	      "the process that parses the guest's packets has no capability and a system-call "
	      "filter");
	return true;
}

static void transfer_to_host(struct test *test)
{
	struct checksum received = {0};
	struct agent_reply reply = {.error = EIO};
	int listener = host_listen(PORT), fd;
	uint64_t start, ms;

	agent_tell(&test->agent, "send %u %" PRIu64 " 1", PORT, TRANSFER_BYTES);
	fd = host_accept(listener, HOST_TRANSFER_MS);
	start = host_now_ms();
	stream_receive(fd, UINT64_MAX, &received);
	ms = host_now_ms() - start;
	agent_wait_reply(&test->agent, &reply);
	check(test,
	      reply.error == 0 && received.n_bytes == TRANSFER_BYTES &&
		      checksum_value(&received) == stream_checksum(1, TRANSFER_BYTES),
	      "64 MiB guest to host intact (%" PRIu64 " MiB/s)",
	      mib_per_second(received.n_bytes, ms));
	close(fd);
	host_unlisten(PORT, listener);
}

static void transfer_to_guest(struct test *test)
{
	struct agent_reply reply = {.error = EIO};
	uint64_t start, ms;
	int fd;

	agent_tell(&test->agent, "receive %u", PORT);
	agent_wait_listening(&test->agent);
	fd = host_connect(PORT, HOST_TRANSFER_MS);
	start = host_now_ms();
	stream_send(fd, 2, TRANSFER_BYTES);
	close(fd);
	agent_wait_reply(&test->agent, &reply);
	ms = host_now_ms() - start;
	check(test,
	      reply.error == 0 && reply.n_bytes == TRANSFER_BYTES &&
		      reply.sum == stream_checksum(2, TRANSFER_BYTES),
	      "64 MiB host to guest intact (%" PRIu64 " MiB/s)", mib_per_second(reply.n_bytes, ms));
}

static bool step_transfers(struct test *test)
{
	transfer_to_host(test);
	transfer_to_guest(test);
	return true;
}

static void in_a_row_to_host(struct test *test)
{
	struct agent_reply reply = {.error = EIO};
	int listener = host_listen(PORT);
	uint64_t start = host_now_ms();
	unsigned int n = 0;

	agent_tell(&test->agent, "many %u %d", PORT, N_IN_A_ROW);
	for (int i = 0; i < N_IN_A_ROW; i++) {
		int fd = host_accept(listener, WAIT_MS);
		char bytes[8];

		if (fd < 0)
			break;
		n += recv(fd, bytes, sizeof(bytes), MSG_WAITALL) == sizeof(bytes) &&
		     send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) == sizeof(bytes) &&
		     host_wait_for_end(fd, WAIT_MS) == 0;
		close(fd);
	}
	agent_wait_reply(&test->agent, &reply);
	check(test, n == N_IN_A_ROW && reply.error == 0,
	      "%d connections in a row guest to host (%" PRIu64 " a second)", N_IN_A_ROW,
	      UINT64_C(1000) * n / (host_now_ms() - start + 1));
	host_unlisten(PORT, listener);
}

static void in_a_row_to_guest(struct test *test)
{
	uint64_t start = host_now_ms();
	unsigned int n = 0;

	while (n < N_IN_A_ROW && guest_is_reached())
		n++;
	check(test, n == N_IN_A_ROW, "%d connections in a row host to guest (%" PRIu64 " a second)",
	      N_IN_A_ROW, UINT64_C(1000) * n / (host_now_ms() - start + 1));
}

static bool step_in_a_row(struct test *test)
{
	in_a_row_to_host(test);
	in_a_row_to_guest(test);
	return true;
}

/* The sequences come in any order: find the one that connection was given. */
static bool is_one_of(const struct checksum *received, uint64_t n_bytes, bool *seen)
{
	for (uint64_t seed = 0; seed < N_AT_ONCE; seed++) {
		if (seen[seed] || received->n_bytes != n_bytes ||
		    checksum_value(received) != stream_checksum(seed, n_bytes))
			continue;
		seen[seed] = true;
		return true;
	}
	return false;
}

static void at_once_to_host(struct test *test)
{
	struct exchange exchanges[N_AT_ONCE] = {0};
	struct agent_reply reply = {.error = EIO};
	bool seen[N_AT_ONCE] = {false};
	int listener = host_listen(PORT);
	unsigned int n = 0, n_intact = 0;
	uint64_t start, ms;

	agent_tell(&test->agent, "parallel %u %d %" PRIu64, PORT, N_AT_ONCE, MIB);
	while (n < N_AT_ONCE) {
		exchanges[n].fd = host_accept(listener, WAIT_MS);
		if (exchanges[n].fd < 0)
			break;
		n++;
	}
	start = host_now_ms();
	for (unsigned int i = 0; i < n; i++)
		exchange_start(&exchanges[i]);
	for (unsigned int i = 0; i < n; i++) {
		exchange_finish(&exchanges[i]);
		n_intact += is_one_of(&exchanges[i].received, MIB, seen);
	}
	ms = host_now_ms() - start;
	agent_wait_reply(&test->agent, &reply);
	check(test, n_intact == N_AT_ONCE && reply.error == 0,
	      "%d connections at once guest to host, 1 MiB each, intact (%" PRIu64 " MiB/s)",
	      N_AT_ONCE, mib_per_second(n_intact * MIB, ms));
	host_unlisten(PORT, listener);
}

static void at_once_there_and_back(struct test *test)
{
	struct exchange exchanges[N_AT_ONCE] = {0};
	unsigned int n = 0, n_intact = 0;
	uint64_t start = host_now_ms();

	while (n < N_AT_ONCE) {
		exchanges[n] = (struct exchange){.sends = true, .seed = n, .n_bytes = MIB};
		exchanges[n].fd = host_connect(ECHO_PORT, WAIT_MS);
		if (exchanges[n].fd < 0)
			break;
		n++;
	}
	for (unsigned int i = 0; i < n; i++)
		exchange_start(&exchanges[i]);
	for (unsigned int i = 0; i < n; i++)
		n_intact += exchange_finish(&exchanges[i]);
	check(test, n_intact == N_AT_ONCE,
	      "%d connections at once host to guest, 1 MiB there and back each, intact (%.1f s)",
	      N_AT_ONCE, (double)(host_now_ms() - start) / 1000);
}

static bool step_at_once(struct test *test)
{
	at_once_to_host(test);
	at_once_there_and_back(test);
	return true;
}

static void half_close_by_guest(struct test *test)
{
	struct checksum received = {0};
	struct agent_reply reply = {.error = EIO};
	int listener = host_listen(PORT), fd;

	agent_tell(&test->agent, "halfclose %u %" PRIu64 " 3", PORT, MIB);
	fd = host_accept(listener, WAIT_MS);
	stream_receive(fd, UINT64_MAX, &received);
	stream_send(fd, 4, MIB);
	close(fd);
	agent_wait_reply(&test->agent, &reply);
	check(test,
	      checksum_value(&received) == stream_checksum(3, MIB) && reply.error == 0 &&
		      reply.sum == stream_checksum(4, MIB),
	      "a guest that has shut down sending still receives (%" PRIu64 " KiB, then the end)",
	      reply.n_bytes >> 10);
	host_unlisten(PORT, listener);
}

static void half_close_by_host(struct test *test)
{
	struct agent_reply reply = {.error = EIO};
	struct exchange exchange = {.sends = true, .seed = 5, .n_bytes = MIB};
	bool is_intact = false;

	agent_tell(&test->agent, "answer %u %" PRIu64 " 5", PORT, MIB);
	agent_wait_listening(&test->agent);
	exchange.fd = host_connect(PORT, WAIT_MS);
	if (exchange.fd >= 0 && exchange_start(&exchange) == 0)
		is_intact = exchange_finish(&exchange);
	agent_wait_reply(&test->agent, &reply);
	check(test, is_intact && reply.error == 0 && reply.sum == stream_checksum(5, MIB),
	      "a host program that has shut down sending still receives (%" PRIu64
	      " KiB, then the end)",
	      exchange.received.n_bytes >> 10);
}

static bool step_half_close(struct test *test)
{
	half_close_by_guest(test);
	half_close_by_host(test);
	return true;
}

static void messages_of_guest(struct test *test)
{
	struct checksum received = {0};
	struct agent_reply reply = {.error = EIO};
	int listener = host_listen_messages(PORT), fd, error = -EIO;

	agent_tell(&test->agent, "messages %u %d 10", PORT, N_MESSAGES);
	fd = host_accept(listener, WAIT_MS);
	if (fd >= 0)
		error = messages_receive(fd, false, &received);
	if (error == 0)
		error = messages_send(fd, 11, N_MESSAGES);
	close(fd);
	agent_wait_reply(&test->agent, &reply);
	check(test,
	      error == 0 && checksum_value(&received) == messages_checksum(10, N_MESSAGES) &&
		      reply.error == 0 && reply.sum == messages_checksum(11, N_MESSAGES),
	      "%d messages guest to host, and %d back, none cut, joined or marked (%" PRIu64
	      " KiB each way)",
	      N_MESSAGES, N_MESSAGES, received.n_bytes >> 10);
	host_unlisten(PORT, listener);
}

static void messages_of_host(struct test *test)
{
	struct checksum received = {0};
	struct agent_reply reply = {.error = EIO};
	int fd, error = -EIO;

	agent_tell(&test->agent, "answer-messages %u %d 12", PORT, N_MESSAGES);
	agent_wait_listening(&test->agent);
	fd = host_connect_messages(PORT, WAIT_MS);
	if (fd >= 0)
		error = messages_send(fd, 13, N_MESSAGES);
	shutdown(fd, SHUT_WR);
	if (error == 0)
		error = messages_receive(fd, false, &received);
	close(fd);
	agent_wait_reply(&test->agent, &reply);
	check(test,
	      error == 0 && checksum_value(&received) == messages_checksum(12, N_MESSAGES) &&
		      reply.error == 0 && reply.sum == messages_checksum(13, N_MESSAGES),
	      "%d messages host to guest, and %d back, none cut, joined or marked", N_MESSAGES,
	      N_MESSAGES);
}

/* Other back-ends have none. */
static bool step_messages(struct test *test)
{
	if (!machine_can_replace_worker())
		return true;
	messages_of_guest(test);
	messages_of_host(test);
	return true;
}

static bool step_refusal(struct test *test)
{
	struct agent_reply reply = {0};
	struct stopwatch watch;
	int fd;

	machine_start_watch(&watch);
	agent_tell(&test->agent, "connect %u", PORT_WITHOUT_LISTENER);
	agent_wait_reply(&test->agent, &reply);
	check(test, (reply.error == ECONNREFUSED || reply.error == ECONNRESET) && is_soon(&watch),
	      "a guest's connection to a port without a listener is refused at once (%s, %" PRId64
	      " ms)",
	      strerror(reply.error), stopwatch_elapsed(&watch));

	machine_start_watch(&watch);
	fd = host_connect(PORT_WITHOUT_LISTENER, WAIT_MS);
	check(test, fd == -ECONNREFUSED && is_soon(&watch),
	      "a host's connection to a port without a listener is refused at once (%" PRId64
	      " ms)",
	      stopwatch_elapsed(&watch));
	if (fd >= 0)
		close(fd);
	return true;
}

/* One connects, sends, and says that it is done; the other reads to the end, and answers. */
static void transfer_between(struct test *test, struct agent *from, struct agent *to,
			     const char *what)
{
	struct agent_reply sent = {.error = EIO}, answered = {.error = EIO};
	uint64_t start, ms;

	agent_tell(to, "answer %u %" PRIu64 " 8", PORT, TRANSFER_BYTES / 2);
	agent_wait_listening(to);
	start = host_now_ms();
	agent_tell(from, "halfclose %u %" PRIu64 " 7", PORT, TRANSFER_BYTES / 2);
	agent_wait_reply(from, &sent);
	agent_wait_reply(to, &answered);
	ms = host_now_ms() - start;
	check(test,
	      answered.error == 0 && answered.sum == stream_checksum(7, TRANSFER_BYTES / 2) &&
		      sent.error == 0 && sent.sum == stream_checksum(8, TRANSFER_BYTES / 2),
	      "32 MiB from the %s, then 32 MiB back, intact (%" PRIu64 " MiB/s)", what,
	      mib_per_second(answered.n_bytes + sent.n_bytes, ms));
}

static void messages_between(struct test *test)
{
	struct agent_reply sent = {.error = EIO}, answered = {.error = EIO};

	agent_tell(&test->sibling, "answer-messages %u %d 14", PORT, N_MESSAGES);
	agent_wait_listening(&test->sibling);
	agent_tell(&test->agent, "messages %u %d 15", PORT, N_MESSAGES);
	agent_wait_reply(&test->agent, &sent);
	agent_wait_reply(&test->sibling, &answered);
	check(test,
	      answered.error == 0 && answered.sum == messages_checksum(15, N_MESSAGES) &&
		      sent.error == 0 && sent.sum == messages_checksum(14, N_MESSAGES),
	      "%d messages from one guest to the other, and %d back, none cut or joined",
	      N_MESSAGES, N_MESSAGES);
}

static bool set_peer(struct agent *agent, unsigned int cid)
{
	struct agent_reply reply;

	return agent_tell(agent, "peer %u", cid) == 0 && agent_wait_reply(agent, &reply) == 0;
}

static void refuse_between(struct test *test, unsigned int cid, const char *what)
{
	struct agent_reply reply = {0};
	struct stopwatch watch;

	set_peer(&test->sibling, cid);
	machine_start_watch(&watch);
	agent_tell(&test->sibling, "connect %u", PORT_WITHOUT_LISTENER);
	agent_wait_reply(&test->sibling, &reply);
	check(test, (reply.error == ECONNREFUSED || reply.error == ECONNRESET) && is_soon(&watch),
	      "a guest's connection to %s is refused at once (%s, %" PRId64 " ms)", what,
	      strerror(reply.error), stopwatch_elapsed(&watch));
}

/* The other guest sends back what nobody reads: both are stuck in the middle of it. */
static void end_sibling(struct test *test)
{
	uint64_t end = host_now_ms() + WAIT_MS;
	struct agent_reply reply = {0};
	struct stopwatch watch;
	bool is_echoing = start_echo(&test->sibling);

	agent_tell(&test->agent, "send %u %" PRIu64 " 9", ECHO_PORT, MIB * MIB);
	while (is_echoing && n_echoing(&test->sibling) == 0)
		is_echoing = host_now_ms() < end;
	machine_start_watch(&watch);
	kill(test->machine.sibling_pid, SIGKILL);
	machine_wait(&test->machine.sibling_pid, WAIT_MS);
	agent_wait_reply(&test->agent, &reply);
	check(test,
	      is_echoing && (reply.error == ECONNRESET || reply.error == EPIPE) && is_soon(&watch),
	      "when a guest's QEMU is killed, the other guest's connection ends (%s, %" PRId64
	      " ms)",
	      strerror(reply.error), stopwatch_elapsed(&watch));
}

static bool step_siblings(struct test *test)
{
	uint64_t start = host_now_ms();
	bool is_ready = machine_start_sibling(&test->machine) == 0 &&
			agent_wait(&test->sibling, BOOT_MS, NULL) == 0;

	check(test, is_ready, "a second guest boots behind the same back-end (%.1f s)",
	      (double)(host_now_ms() - start) / 1000);
	if (!is_ready || !set_peer(&test->agent, MACHINE_SIBLING_CID) ||
	    !set_peer(&test->sibling, MACHINE_CID))
		return true;
	transfer_between(test, &test->agent, &test->sibling, "first guest to the second");
	transfer_between(test, &test->sibling, &test->agent, "second guest to the first");
	if (machine_can_replace_worker())
		messages_between(test);
	refuse_between(test, MACHINE_CID, "another guest's port without a listener");
	refuse_between(test, MACHINE_SIBLING_CID + 1, "a CID that no guest has");
	end_sibling(test);
	return set_peer(&test->agent, HOST_CID);
}

static bool step_pause(struct test *test)
{
	int fd = host_connect(ECHO_PORT, WAIT_MS);
	char byte;
	bool is_paused, is_answered;

	is_answered = fd >= 0 && is_echoed(fd);
	is_paused = machine_pause("stop") == 0;
	host_set_time_limit(fd, 200);
	is_paused = is_paused && send(fd, "held", 4, MSG_NOSIGNAL) == 4 &&
		    recv(fd, &byte, 1, 0) < 0 && errno == EAGAIN;
	check(test, is_answered && is_paused, "a paused guest does not answer");

	host_set_time_limit(fd, WAIT_MS);
	is_answered = machine_pause("cont") == 0;
	for (int i = 0; i < 4; i++)
		is_answered = is_answered && recv(fd, &byte, 1, 0) == 1 && byte == "held"[i];
	check(test, is_answered && is_echoed(fd),
	      "a guest that goes on after a pause has kept its connections and gets what was sent");
	close(fd);
	return true;
}

static bool pause_and_go_on(struct test *test)
{
	(void)test;
	return machine_pause("stop") == 0 && machine_pause("cont") == 0;
}

/* Something is done while bytes run from the guest, and others there and back. */
static void check_in_transfer(struct test *test, bool (*act)(struct test *test), const char *what)
{
	struct exchange exchange = {.sends = true, .seed = 7, .n_bytes = 16 * MIB};
	struct checksum received = {0};
	struct agent_reply reply = {.error = EIO};
	int listener = host_listen(PORT), fd;
	bool is_done = false;

	agent_tell(&test->agent, "send %u %" PRIu64 " 8", PORT, TRANSFER_BYTES);
	fd = host_accept(listener, WAIT_MS);
	exchange.fd = host_connect(ECHO_PORT, WAIT_MS);
	if (fd >= 0 && exchange.fd >= 0 && exchange_start(&exchange) == 0) {
		stream_receive(fd, 8 * MIB, &received);
		is_done = act(test);
		stream_receive(fd, UINT64_MAX, &received);
		is_done = exchange_finish(&exchange) && is_done;
	}
	agent_wait_reply(&test->agent, &reply);
	check(test,
	      is_done && reply.error == 0 && received.n_bytes == TRANSFER_BYTES &&
		      checksum_value(&received) == stream_checksum(8, TRANSFER_BYTES),
	      "%s in the middle of transfers both ways, which arrive intact", what);
	close(fd);
	host_unlisten(PORT, listener);
}

static bool step_pause_in_transfer(struct test *test)
{
	check_in_transfer(test, pause_and_go_on, "the guest is paused and goes on");
	return true;
}

static bool replace_worker(struct test *test)
{
	(void)test;
	for (int i = 0; i < N_REPLACEMENTS; i++)
		if (machine_replace_worker() != 0)
			return false;
	return true;
}

static bool step_replacement(struct test *test)
{
	char what[64];

	if (!machine_can_replace_worker())
		return true;
	snprintf(what, sizeof(what), "the worker is replaced %d times", N_REPLACEMENTS);
	check_in_transfer(test, replace_worker, what);
	return true;
}

static bool step_reboot(struct test *test)
{
	int fd = host_connect(ECHO_PORT, WAIT_MS);
	uint64_t start = host_now_ms();
	struct stopwatch watch;
	bool is_ready;

	agent_tell(&test->agent, "reboot");
	is_ready = agent_wait(&test->agent, BOOT_MS, NULL) == 0 && start_echo(&test->agent);
	check(test, is_ready && guest_is_reached() && machine_qemu_is_running(&test->machine),
	      "the guest works again after its reboot (%.1f s), same QEMU, same back-end",
	      (double)(host_now_ms() - start) / 1000);
	machine_start_watch(&watch);
	check(test, fd >= 0 && host_wait_for_end(fd, WAIT_MS) == 0 && is_soon(&watch),
	      "connections from before the reboot have ended");
	close(fd);
	return is_ready;
}

/* The guest is in the middle of sending, an idle connection stands as well. */
static bool step_worker_death(struct test *test)
{
	struct agent_reply last = {0};
	struct checksum received = {0};
	int listener = host_listen(PORT);
	int idle = host_connect(ECHO_PORT, WAIT_MS), busy;
	bool are_ended, is_back;
	struct stopwatch watch;
	pid_t worker;

	agent_tell(&test->agent, "send %u %" PRIu64 " 6", PORT, MIB * MIB);
	busy = host_accept(listener, WAIT_MS);
	stream_receive(busy, 8 * MIB, &received);
	worker = machine_worker(&test->machine);
	machine_start_watch(&watch);
	check(test,
	      idle >= 0 && received.n_bytes == 8 * MIB && worker > 0 && !kill(worker, SIGKILL),
	      "the worker is killed in the middle of a transfer");
	are_ended = host_wait_for_end(busy, WAIT_MS) == 0 && host_wait_for_end(idle, WAIT_MS) == 0;
	check(test, are_ended && is_soon(&watch),
	      "its connections end on the host (%" PRId64 " ms)", stopwatch_elapsed(&watch));

	is_back = agent_wait(&test->agent, WAIT_MS, &last) == 0;
	check(test,
	      is_back && is_soon(&watch) && (last.error == ECONNRESET || last.error == EPIPE) &&
		      n_echoing(&test->agent) == 0,
	      "its connections are reset in the guest, which connects again (%" PRId64 " ms)",
	      stopwatch_elapsed(&watch));
	is_back = is_back && guest_is_reached();
	check(test, is_back && stopwatch_spent(&watch) < 2 * SOON_MS,
	      "a host program reaches the guest again");
	check(test, machine_qemu_is_running(&test->machine), "QEMU did not notice");
	close(idle);
	close(busy);
	host_unlisten(PORT, listener);
	return is_back;
}

static bool step_new_qemu(struct test *test)
{
	int fd = host_connect(ECHO_PORT, WAIT_MS);
	struct stopwatch watch;
	bool is_ready;

	machine_start_watch(&watch);
	kill(test->machine.qemu_pid, SIGKILL);
	machine_wait(&test->machine.qemu_pid, WAIT_MS);
	check(test, fd >= 0 && host_wait_for_end(fd, WAIT_MS) == 0 && is_soon(&watch),
	      "connections end when QEMU is killed");
	close(fd);
	is_ready = boot(test);
	check(test, is_ready && guest_is_reached(), "a new QEMU works with the same back-end");
	return is_ready;
}

static bool is_gone(const char *path)
{
	struct stat status;

	return stat(path, &status) < 0 && errno == ENOENT;
}

static bool step_end(struct test *test)
{
	int status;

	agent_tell(&test->agent, "poweroff");
	status = machine_wait(&test->machine.qemu_pid, WAIT_MS);
	check(test, status == 0, "the guest powers off and QEMU ends by itself");

	kill(test->machine.back_end_pid, SIGTERM);
	status = machine_wait(&test->machine.back_end_pid, WAIT_MS);
	check(test, status == 0, "the back-end ends with success on SIGTERM");
	check(test, is_gone(MACHINE_SOCKET) && is_gone(HOST_UDS_NAME),
	      "it has removed its sockets");
	check(test, machine_wait_alone(getppid(), WAIT_MS) == 0, "it has left no process");
	return true;
}

static const struct step {
	const char *title;
	bool (*run)(struct test *test); /* false: the guest cannot be reached any more */
} steps[] = {
	{"The back-end and a guest start", step_start},
	{"How far the worker is confined", step_confinement},
	{"Long transfers", step_transfers},
	{"Many connections, one after the other", step_in_a_row},
	{"Many connections at once", step_at_once},
	{"Half-closed connections", step_half_close},
	{"Messages", step_messages},
	{"Nobody listens", step_refusal},
	{"Guests reach each other", step_siblings},
	{"The guest is paused", step_pause},
	{"The guest is paused in mid transfer", step_pause_in_transfer},
	{"The worker is replaced in mid transfer", step_replacement},
	{"The guest reboots", step_reboot},
	{"The worker is killed", step_worker_death},
	{"QEMU is killed and started again", step_new_qemu},
	{"The end", step_end},
};

static int run_steps(struct test *test)
{
	uint64_t start = host_now_ms();
	bool can_go_on = true;

	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		if (test->score->is_demo)
			printf("[%6.1f s] %s\n", (double)(host_now_ms() - start) / 1000,
			       steps[i].title);
		if (can_go_on)
			can_go_on = steps[i].run(test);
		else
			check(test, false, "not run: %s", steps[i].title);
	}
	return atomic_load(&test->score->n_failed) ? 1 : 0;
}

static void show_log(const char *name)
{
	FILE *log = fopen(name, "re");
	char lines[40][256];
	size_t n = 0;

	if (!log)
		return;
	while (fgets(lines[n % 40], sizeof(lines[0]), log))
		n++;
	fclose(log);
	printf("---- the end of %s\n", name);
	for (size_t i = n > 40 ? n - 40 : 0; i < n; i++)
		printf("%s", lines[i % 40]);
	printf("----\n");
}

/* The test makes no directories in its own. */
static void remove_directory(const char *path)
{
	DIR *directory = opendir(path);
	struct dirent *entry;

	while (directory && (entry = readdir(directory)))
		unlinkat(dirfd(directory), entry->d_name, 0);
	if (directory)
		closedir(directory);
	rmdir(path);
}

/* Until the child ends: its exit code. By signal or time limit: 128 and the signal's number. */
static int wait_for_steps(pid_t child, const sigset_t *signals)
{
	uint64_t end = host_now_ms() + ALL_SECONDS * 1000;

	for (;;) {
		struct timespec wait = {.tv_nsec = 200000000};
		int number = sigtimedwait(signals, NULL, &wait);
		int status;
		pid_t ended;

		if (number > 0 && number != SIGCHLD)
			return 128 + number;
		/* What outlives its parent becomes a child of this process, too. */
		while ((ended = waitpid(-1, &status, WNOHANG)) > 0) {
			if (ended != child)
				continue;
			return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		}
		if (host_now_ms() > end) {
			printf("the test took more than %d s\n", ALL_SECONDS);
			return 128 + SIGALRM;
		}
	}
}

static int supervise(pid_t child, const sigset_t *signals, struct score *score)
{
	int code = wait_for_steps(child, signals);
	bool was_stopped = code == 128 + SIGINT || code == 128 + SIGTERM || code == 128 + SIGHUP;

	machine_kill_children();
	if (code > 1)
		score->n_failed++;
	if (code != 0 && !was_stopped) {
		show_log(MACHINE_BACK_END_LOG);
		show_log(MACHINE_QEMU_LOG);
		show_log(MACHINE_SERIAL_LOG);
		show_log(MACHINE_SIBLING_SERIAL_LOG);
	}
	if (was_stopped)
		printf("stopped by signal %d\n", code - 128);
	printf("%s%u passed, %u failed\n", score->is_demo ? "\n" : "", score->n_passed,
	       score->n_failed);
	return code;
}

static pid_t fork_steps(struct test *test, const sigset_t *signals)
{
	pid_t parent = getpid();
	pid_t child = fork();

	if (child != 0)
		return child;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigprocmask(SIG_UNBLOCK, signals, NULL);
	if (getppid() != parent)
		_exit(1);
	exit(run_steps(test));
}

int main(int argc, char **argv)
{
	struct test test = {.machine = {.back_end_pid = -1, .qemu_pid = -1, .sibling_pid = -1}};
	char directory[PATH_MAX];
	const char *temporary = getenv("TMPDIR"), *prefix;
	sigset_t signals;
	pid_t child;
	int code;

	if (argc < 6 || (strcmp(argv[1], "--test") && strcmp(argv[1], "--packed") &&
			 strcmp(argv[1], "--demo"))) {
		fprintf(stderr, "usage: guest_test --test|--packed|--demo KERNEL INITRAMFS "
				"ACCELERATOR BACK-END...\n");
		return 64;
	}
	test.machine.kernel = argv[2];
	test.machine.initramfs = argv[3];
	test.machine.accelerator = argv[4];
	test.machine.back_end = &argv[5];
	test.machine.is_packed = !strcmp(argv[1], "--packed");
	test.score = mmap(NULL, sizeof(*test.score), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	snprintf(directory, sizeof(directory), "%s/vsockd-guest.XXXXXX",
		 temporary ? temporary : "/tmp");
	if (test.score == MAP_FAILED || !mkdtemp(directory) || chdir(directory) < 0) {
		perror("guest_test: temporary directory");
		return 1;
	}
	test.score->is_demo = !strcmp(argv[1], "--demo");
	prefix = test.score->is_demo ? "" : "# ";
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("%sA Linux guest in QEMU, CID %d, behind %s\n", prefix, MACHINE_CID, argv[5]);
	if (strcmp(argv[4], "kvm"))
		printf("%sIts processor is emulated (%s): rates are the guest's, not the "
		       "back-end's\n",
		       prefix, argv[4]);

	/* A reader of the output that leaves early must not keep this process from tidying up. */
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&signals);
	for (size_t i = 0; i < 4; i++)
		sigaddset(&signals, (int[]){SIGCHLD, SIGINT, SIGTERM, SIGHUP}[i]);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	child = fork_steps(&test, &signals);
	code = child < 0 ? 1 : supervise(child, &signals, test.score);
	remove_directory(directory);
	return code;
}
