/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/load/attacks.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define PORT	   3000
#define PROGRAMS   16
#define HANDSHAKES 300
#define LEN	   65536

static int started; /* where an attacker says that it has begun */

static void say_started(void)
{
	if (started >= 0)
		(void)!write(started, "", 1);
	started = -1;
}

static struct guest *attacker(struct setup *setup, size_t vm, const struct guest_options *options)
{
	return setup_guest(setup, vm, *options);
}

static struct guest *plain_attacker(struct setup *setup, size_t vm)
{
	return attacker(setup, vm, &(struct guest_options){0});
}

/* ---- what costs a neighbour a processor, and is nobody's fault ---- */

static void burn(struct setup *setup)
{
	volatile unsigned int n = 0;

	(void)setup;
	say_started();
	for (;;)
		n = n + 1;
}

/* ---- packets ---- */

/* All that the ring takes, and again; what comes back is taken out. */
static void flood(struct guest *guest, struct packet *packet)
{
	say_started();
	for (;;) {
		int result;

		packet->src_port++;
		result = guest_send_packet(guest, packet, NULL, 0, NULL);
		if (result == -EAGAIN)
			result = guest_poll(guest, 1);
		if (result < 0)
			_exit(1);
	}
}

static void flood_without_connection(struct setup *setup, enum packet_op op)
{
	struct packet packet = {
		.src_cid = setup_cid(1),
		.dst_cid = PACKET_HOST_CID,
		.src_port = 1,
		.dst_port = PORT,
		.type = PACKET_STREAM,
		.op = (uint16_t)op,
		.buf_alloc = 65536,
	};

	flood(plain_attacker(setup, 1), &packet);
}

static void flood_requests(struct setup *setup)
{
	flood_without_connection(setup, PACKET_REQUEST);
}

static void flood_resets(struct setup *setup)
{
	flood_without_connection(setup, PACKET_RST);
}

static void flood_credit_requests(struct setup *setup)
{
	struct guest *guest = plain_attacker(setup, 1);
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 1, PORT, &stream);
	struct packet packet = guest_packet(connection, PACKET_CREDIT_REQUEST);

	for (;;) {
		packet.src_port = connection->port - 1;
		flood(guest, &packet);
	}
}

/* ---- guests that do not take part ---- */

/* Host programs that write whatever fits; they say CONNECT and are not answered at once. */
static void write_for_ever(struct guest *guest, const int *programs, bool takes_part)
{
	static uint8_t bytes[LEN];

	say_started();
	for (;;) {
		for (size_t i = 0; i < PROGRAMS; i++)
			(void)!send(programs[i], bytes, sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL);
		if (takes_part) {
			if (guest_poll(guest, 1) < 0)
				_exit(1);
			continue;
		}
		for (size_t i = 0; i < guest->n_rings; i++)
			ring_kick(&guest->rings[i]);
	}
}

static void call_guest(struct setup *setup, struct guest *guest, int *programs)
{
	assert_int_equal(guest_listen(guest, PORT), 0);
	for (size_t i = 0; i < PROGRAMS; i++) {
		programs[i] = host_connect(setup->uds_paths[1], PORT, SETUP_LIMIT);
		assert_true(programs[i] >= 0);
		assert_non_null(guest_accept_wait(guest, PORT, SETUP_LIMIT));
	}
}

static void read_never(struct setup *setup)
{
	struct guest *guest = plain_attacker(setup, 1);
	int programs[PROGRAMS];

	call_guest(setup, guest, programs);
	write_for_ever(guest, programs, true);
}

/* It kicks and kicks, and leaves all buffers that come back where they are. */
static void post_never(struct setup *setup)
{
	struct guest *guest = plain_attacker(setup, 1);
	int programs[PROGRAMS];

	call_guest(setup, guest, programs);
	write_for_ever(guest, programs, false);
}

/* ---- siblings ---- */

static void drop_bytes(void *context, const uint8_t *bytes, size_t len)
{
	(void)context;
	(void)bytes;
	(void)len;
}

static void flood_each_other(struct setup *setup)
{
	struct guest *one = plain_attacker(setup, 1), *other = plain_attacker(setup, 2);
	struct guest_connection *ends[2] = {NULL, NULL};

	assert_int_equal(guest_listen(other, PORT), 0);
	ends[0] = guest_connect(one, setup_cid(2), PORT);
	while (!ends[1] || ends[0]->state != GUEST_ESTABLISHED) {
		assert_true(guest_poll(one, 1) >= 0 && guest_poll(other, 1) >= 0);
		if (!ends[1])
			ends[1] = guest_accept(other, PORT);
	}
	ends[0]->sink = drop_bytes;
	ends[1]->sink = drop_bytes;
	say_started();
	for (;;) {
		ssize_t n = guest_send(ends[0], NULL, LEN), m = guest_send(ends[1], NULL, LEN);

		if (guest_poll(one, n <= 0 && m <= 0) < 0 || guest_poll(other, 0) < 0)
			_exit(1);
	}
}

/* ---- host programs ---- */

/* Each says a byte of its line at a time, and comes again when it is sent away. */
static void shake_slowly(struct setup *setup)
{
	static const char line[] = "CONNECT 3000";
	struct guest *guest = plain_attacker(setup, 1);
	static int programs[HANDSHAKES];
	static size_t said[HANDSHAKES];

	for (size_t i = 0; i < HANDSHAKES; i++)
		programs[i] = -1;
	for (size_t round = 0;; round++) {
		for (size_t i = 0; i < HANDSHAKES; i++) {
			char byte;

			if (programs[i] >= 0 && recv(programs[i], &byte, 1, MSG_DONTWAIT) == 0) {
				close(programs[i]);
				programs[i] = -1;
			}
			if (programs[i] < 0) {
				programs[i] = socket_connect(setup->uds_paths[1], SOCK_STREAM, 1);
				said[i] = 0;
			} else if (said[i] < sizeof(line) - 1) {
				(void)!send(programs[i], line + said[i]++, 1,
					    MSG_DONTWAIT | MSG_NOSIGNAL);
			}
		}
		if (round == 0)
			say_started();
		if (guest_poll(guest, 1) < 0)
			_exit(1);
	}
}

const struct attack attacks[] = {
	{"a program that only burns a processor", burn},
	{"a guest that never posts rx buffers, and kicks", post_never},
	{"a guest that never reads", read_never},
	{"a flood of REQUEST", flood_requests},
	{"a flood of RST", flood_resets},
	{"a flood of CREDIT_REQUEST", flood_credit_requests},
	{"siblings that flood each other", flood_each_other},
	{"300 slow handshakes", shake_slowly},
	{NULL, NULL},
};

pid_t attack_start(struct setup *setup, const struct attack *attack)
{
	pid_t parent = getpid(), pid;
	int pipe_fds[2];
	char byte;

	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		close(pipe_fds[0]);
		started = pipe_fds[1];
		attack->run(setup);
		_exit(1);
	}
	close(pipe_fds[1]);
	assert_int_equal(socket_wait(pipe_fds[0], POLLIN, deadline_in(SETUP_LIMIT)), 0);
	if (read(pipe_fds[0], &byte, 1) != 1)
		fail_msg("%s: does not begin", attack->name);
	close(pipe_fds[0]);
	return pid;
}

void attack_end(pid_t pid)
{
	siginfo_t ended = {0};

	/* One that could not go on has ended before. */
	assert_int_equal(waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOHANG), 0);
	assert_int_equal(ended.si_pid, 0);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}
