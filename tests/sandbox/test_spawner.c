/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real spawner, with the helper for a worker. This process speaks for the
 * front; a process that only waits dies for it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/configuration.h"
#include "broker/listener.h"
#include "broker/log.h"
#include "broker/reload.h"
#include "broker/spawner.h"
#include "policy/start.h"
#include "tests/sandbox/sandbox.h"

#define N_VMS	      3 /* the first two share a group */
#define N_WORKERS_MAX (N_VMS * SPAWNER_WORKERS_PER_VM + SPAWNER_WORKERS_SPARE)
#define STREAM	      1
#define SEQPACKET     2

static int program; /* the helper */
static char directory[64];

struct bench {
	pid_t spawner;
	pid_t front;
	int channel;
	char path[sizeof(directory) + 8]; /* uds_path of the one VM */
};

static void limit_wait(int fd)
{
	struct timeval limit = {.tv_sec = SANDBOX_SECONDS};

	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
}

/* In its own process, like the spawner's part of vsockd's main(). */
static _Noreturn void be_reloading_spawner(struct spawner_setup *setup);

static _Noreturn void be_spawner(int channel, int report, char *path, bool has_file,
				 const char *worker_path)
{
	static char common[] = "common", apart[] = "apart", alone[] = "alone";
	char *groups[N_VMS][2] = {{apart, common}, {common}, {alone}};
	struct vm_configuration vm = {
		.guest_cid = 3,
		.uds_path = path,
		.tx_buffer_size = 65536,
		.max_connections = 8,
		.groups = groups[0],
		.n_groups = 2,
	};
	struct vm_configuration vms[N_VMS] = {vm, vm, vm};
	struct configuration configuration = {
		.vms = vms,
		.n_vms = N_VMS,
		.insecure = sandbox_has_namespaces() ? 0 : POLICY_INSECURE_NO_NAMESPACES,
	};
	struct spawner_setup setup = {
		.configuration = &configuration,
		.front_channel = channel,
		.worker_program = program,
		.worker_path = worker_path,
	};
	sigset_t signals;
	pid_t front;

	vms[0].peers.allowed_users = (struct peer_ids){{geteuid()}, 1};
	vms[1].peers.denied_users = (struct peer_ids){{geteuid()}, 1};
	for (size_t i = 1; i < N_VMS; i++) {
		vms[i].groups = groups[i];
		vms[i].n_groups = 1;
	}
	(void)alarm(2 * SANDBOX_SECONDS);
	(void)sigemptyset(&signals);
	(void)sigaddset(&signals, SIGTERM);
	(void)sigaddset(&signals, SIGINT);
	(void)sigaddset(&signals, SIGHUP);
	(void)sigaddset(&signals, SIGCHLD);
	(void)sigprocmask(SIG_BLOCK, &signals, NULL);
	log_open(LOG_ERR);
	front = fork();
	if (!front) {
		close(channel);
		for (;;)
			(void)pause();
	}
	if (write(report, &front, sizeof(front)) != sizeof(front))
		_exit(99);
	setup.front_pidfd = (int)syscall(SYS_pidfd_open, front, 0u);
	if (has_file)
		be_reloading_spawner(&setup);
	_exit(spawner_run(&setup));
}

static void write_vms(uint64_t first, uint64_t second)
{
	char path[sizeof(directory) + 16];
	FILE *file;

	(void)snprintf(path, sizeof(path), "%s/vsockd.yaml", directory);
	file = fopen(path, "w");
	assert_non_null(file);
	(void)fprintf(file,
		      "vms:\n- {guest-cid: %" PRIu64 ", socket: %s/s%" PRIu64
		      ", uds-path: %s/u%" PRIu64 "}\n- {guest-cid: %" PRIu64
		      ", socket: %s/s%" PRIu64 ", uds-path: %s/u%" PRIu64 "}\n%s",
		      first, directory, first, directory, first, second, directory, second,
		      directory, second,
		      sandbox_has_namespaces() ? "" : "insecure-no-namespaces: true\n");
	assert_int_equal(fclose(file), 0);
}

/* The same with a file, that is read again. */
static _Noreturn void be_reloading_spawner(struct spawner_setup *setup)
{
	char path[sizeof(directory) + 16], name[] = "vsockd", option[] = "--config";
	char *argv[] = {name, option, path, NULL};
	struct configuration configuration;
	struct configuration_error error;
	static struct reload reload;
	struct sockets sockets;
	int code;

	(void)snprintf(path, sizeof(path), "%s/vsockd.yaml", directory);
	if (configuration_parse(3, argv, &configuration, &error) ||
	    sockets_init(&sockets, &configuration, BANK_PLACES) ||
	    reload_init(&reload, 3, argv, &configuration, &sockets, 1 << 20))
		_exit(98);
	sockets_close(&sockets);
	setup->configuration = &configuration;
	setup->reload = &reload;
	code = spawner_run(setup);
	sockets_end(&sockets);
	(void)unlink(path);
	_exit(code);
}

static void bench_begin(struct bench *ret_bench, bool has_file, const char *worker_path)
{
	struct bench bench;
	int pair[2], report[2];

	(void)snprintf(bench.path, sizeof(bench.path), "%s/vm", directory);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(pipe2(report, O_CLOEXEC), 0);
	bench.spawner = fork();
	assert_true(bench.spawner >= 0);
	if (!bench.spawner) {
		close(pair[0]);
		be_spawner(pair[1], report[1], bench.path, has_file, worker_path);
	}
	close(pair[1]);
	close(report[1]);
	assert_int_equal(read(report[0], &bench.front, sizeof(bench.front)), sizeof(bench.front));
	close(report[0]);
	limit_wait(pair[0]);
	bench.channel = pair[0];
	*ret_bench = bench;
}

static void bench_start(struct bench *ret_bench)
{
	bench_begin(ret_bench, /* has_file= */ false, NULL);
}

static int bench_end(struct bench *bench)
{
	int status;

	assert_int_equal(waitpid(bench->spawner, &status, 0), bench->spawner);
	close(bench->channel);
	/* The front was a child of the spawner, which has waited for it. */
	assert_int_equal(kill(bench->front, 0), -1);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void bench_stop(struct bench *bench)
{
	assert_int_equal(kill(bench->spawner, SIGTERM), 0);
	assert_int_equal(bench_end(bench), EX_OK);
}

static void ask(const struct bench *bench, struct spawner_request request)
{
	assert_int_equal(send(bench->channel, &request, sizeof(request), 0), sizeof(request));
}

#define REPLY_FDS_MAX 2

/* The fds that a reply has not are -1. */
static struct spawner_reply await_reply_with(const struct bench *bench, int ret_fds[])
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(REPLY_FDS_MAX * sizeof(int))];
	} control;
	struct spawner_reply reply;
	struct iovec part = {&reply, sizeof(reply)};
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.room),
	};

	assert_int_equal(recvmsg(bench->channel, &message, MSG_CMSG_CLOEXEC), sizeof(reply));
	ret_fds[0] = -1;
	ret_fds[1] = -1;
	if (message.msg_controllen)
		memcpy(ret_fds, CMSG_DATA(&control.header), control.header.cmsg_len - CMSG_LEN(0));
	for (size_t i = 0; i < REPLY_FDS_MAX && ret_fds[i] >= 0; i++) {
		if (fcntl(ret_fds[i], F_GET_SEALS) >= 0)
			continue; /* no socket */
		limit_wait(ret_fds[i]);
		/* Created non-blocking for an event loop; these tests rather wait. */
		assert_true(fcntl(ret_fds[i], F_GETFL) & O_NONBLOCK);
		assert_int_equal(fcntl(ret_fds[i], F_SETFL, 0), 0);
	}
	return reply;
}

static struct spawner_reply await_reply(const struct bench *bench, int *ret_fd)
{
	int fds[REPLY_FDS_MAX];
	struct spawner_reply reply = await_reply_with(bench, fds);

	assert_int_equal(fds[1], -1);
	*ret_fd = fds[0];
	return reply;
}

#define BUFFER_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static struct spawner_reply await_spawned(const struct bench *bench, uint64_t token, int *ret_fd)
{
	int fds[REPLY_FDS_MAX];
	struct spawner_reply reply = await_reply_with(bench, fds);
	struct stat buffer;

	assert_int_equal(reply.kind, SPAWNER_SPAWNED);
	assert_int_equal(reply.token, token);
	*ret_fd = fds[0];
	if (reply.error)
		return reply;
	assert_int_equal(fcntl(fds[1], F_GET_SEALS) & BUFFER_SEALS, BUFFER_SEALS);
	assert_int_equal(fstat(fds[1], &buffer), 0);
	assert_int_equal(buffer.st_size, reply.buffer_size);
	close(fds[1]);
	return reply;
}

static struct spawner_reply expect_spawned(const struct bench *bench, uint64_t token, int *ret_fd)
{
	ask(bench, (struct spawner_request){.kind = SPAWNER_SPAWN, .token = token});
	return await_spawned(bench, token, ret_fd);
}

static void expect_ready(int channel)
{
	char text[16] = {0};

	assert_int_equal(recv(channel, text, sizeof(text), 0), 5);
	assert_string_equal(text, "READY");
}

/* The channel of a worker that is ready. */
static int expect_worker(const struct bench *bench)
{
	int channel;

	assert_int_equal(expect_spawned(bench, 0, &channel).error, 0);
	expect_ready(channel);
	return channel;
}

static void test_a_spawned_worker_is_ready_and_its_stop_is_told(void **state)
{
	struct spawner_reply spawned, exited;
	struct bench bench;
	int channel, none;
	char byte;

	(void)state;
	bench_start(&bench);
	spawned = expect_spawned(&bench, UINT64_C(0x1122334455667788), &channel);
	assert_int_equal(spawned.error, 0);
	assert_true(channel >= 0);
	expect_ready(channel);
	ask(&bench, (struct spawner_request){.kind = SPAWNER_STOP, .number = spawned.number});
	exited = await_reply(&bench, &none);
	assert_int_equal(exited.kind, SPAWNER_EXITED);
	assert_int_equal(exited.number, spawned.number);
	assert_true(WIFSIGNALED(exited.error));
	assert_int_equal(WTERMSIG(exited.error), SIGKILL);
	assert_int_equal(none, -1);
	assert_int_equal(recv(channel, &byte, 1, 0), 0);
	close(channel);

	/* A stop that crossed the end is no offence, and numbers are new each time. */
	ask(&bench, (struct spawner_request){.kind = SPAWNER_STOP, .number = spawned.number});
	assert_int_not_equal(expect_spawned(&bench, 2, &channel).number, spawned.number);
	expect_ready(channel);
	close(channel);
	bench_stop(&bench);
}

static void test_the_exit_code_of_a_worker_is_told(void **state)
{
	struct spawner_reply exited;
	struct bench bench;
	int channel, none;

	(void)state;
	bench_start(&bench);
	(void)expect_spawned(&bench, 1, &channel);
	expect_ready(channel);
	assert_int_equal(send(channel, "q", 1, 0), 1);
	exited = await_reply(&bench, &none);
	assert_int_equal(exited.kind, SPAWNER_EXITED);
	assert_true(WIFEXITED(exited.error));
	assert_int_equal(WEXITSTATUS(exited.error), 7);
	close(channel);
	bench_stop(&bench);
}

static void test_workers_beyond_the_limit_are_refused(void **state)
{
	int channels[N_WORKERS_MAX], none;
	struct spawner_reply reply;
	struct bench bench;

	(void)state;
	bench_start(&bench);
	for (size_t i = 0; i < N_WORKERS_MAX; i++) {
		assert_int_equal(expect_spawned(&bench, i, &channels[i]).error, 0);
		expect_ready(channels[i]);
	}
	assert_int_equal(expect_spawned(&bench, 9, &none).error, EAGAIN);
	assert_int_equal(none, -1);

	close(channels[0]); /* the worker ends with its channel */
	reply = await_reply(&bench, &none);
	assert_int_equal(reply.kind, SPAWNER_EXITED);
	assert_int_equal(reply.error, 0);
	assert_int_equal(expect_spawned(&bench, 10, &channels[0]).error, 0);
	expect_ready(channels[0]);
	for (size_t i = 0; i < N_WORKERS_MAX; i++)
		close(channels[i]);
	bench_stop(&bench);
}

/* Put a copy of the helper there, as an upgrade does: a new file, then its name. */
static void install(const char *path)
{
	char from[64], to[128];
	struct stat stat;
	int source, target;

	(void)snprintf(from, sizeof(from), "/proc/self/fd/%d", program);
	(void)snprintf(to, sizeof(to), "%s.new", path);
	source = open(from, O_RDONLY | O_CLOEXEC);
	target = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
	assert_true(source >= 0 && target >= 0);
	assert_int_equal(fstat(source, &stat), 0);
	assert_int_equal(sendfile(target, source, NULL, (size_t)stat.st_size), stat.st_size);
	assert_int_equal(fchmod(target, 0755), 0);
	close(source);
	close(target);
	assert_int_equal(rename(to, path), 0);
}

/* Which of the programs it was started from. */
static uint32_t spawned_program(const struct bench *bench, uint32_t number)
{
	struct spawner_reply reply;
	int channel, none;

	ask(bench, (struct spawner_request){.kind = SPAWNER_SPAWN, .number = number, .token = 3});
	reply = await_spawned(bench, 3, &channel);
	assert_int_equal(reply.error, 0);
	expect_ready(channel);
	close(channel);
	assert_int_equal(await_reply(bench, &none).kind, SPAWNER_EXITED);
	return reply.program;
}

static void test_a_worker_is_started_from_what_is_installed_now(void **state)
{
	struct bench bench;
	char path[128];
	int fd;

	(void)state;
	(void)snprintf(path, sizeof(path), "%s/worker", directory);
	bench_begin(&bench, /* has_file= */ false, path);
	assert_int_equal(spawned_program(&bench, 0), 0); /* there is none */
	install(path);
	assert_int_equal(spawned_program(&bench, 0), 1);
	assert_int_equal(spawned_program(&bench, 0), 1);
	assert_int_equal(spawned_program(&bench, 1), 0);
	install(path);
	assert_int_equal(spawned_program(&bench, 0), 2);

	/* One that can't be run, one that may not be, and none. */
	fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(spawned_program(&bench, 0), 0);
	install(path);
	assert_int_equal(chmod(path, 0600), 0);
	assert_int_equal(spawned_program(&bench, 0), 0);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(spawned_program(&bench, 0), 0);
	bench_stop(&bench);
}

static struct spawner_reply expect_connected(const struct bench *bench, uint32_t port,
					     uint32_t type, int *ret_fd)
{
	struct spawner_reply reply;

	ask(bench, (struct spawner_request){
			   .kind = SPAWNER_CONNECT, .number = port, .type = type, .token = 5});
	reply = await_reply(bench, ret_fd);
	assert_int_equal(reply.kind, SPAWNER_CONNECTED);
	assert_int_equal(reply.device, 0);
	assert_int_equal(reply.number, port);
	assert_int_equal(reply.token, 5);
	return reply;
}

static void test_a_host_socket_is_connected_by_its_port(void **state)
{
	struct listener_failure failure;
	struct listener listener;
	char path[128], byte;
	struct bench bench;
	int fd, peer;

	(void)state;
	bench_start(&bench);
	(void)snprintf(path, sizeof(path), "%s_4294967295", bench.path);
	assert_int_equal(listener_open(path, &LISTENER_OWNER_ONLY, &listener, &failure), 0);
	assert_int_equal(expect_connected(&bench, UINT32_MAX, STREAM, &fd).error, 0);
	assert_true(fd >= 0);
	peer = accept(listener.fd, NULL, NULL);
	assert_true(peer >= 0);
	assert_int_equal(send(peer, "x", 1, 0), 1);
	assert_int_equal(recv(fd, &byte, 1, 0), 1);
	assert_int_equal(byte, 'x');
	close(peer);
	close(fd);

	assert_int_equal(expect_connected(&bench, 1, STREAM, &fd).error, ENOENT);
	assert_int_equal(fd, -1);
	listener_close(&listener);
	assert_int_equal(expect_connected(&bench, UINT32_MAX, STREAM, &fd).error, ECONNREFUSED);
	assert_int_equal(expect_connected(&bench, UINT32_MAX, SEQPACKET, &fd).error, ECONNREFUSED);
	listener_unlink(&listener);
	bench_stop(&bench);
}

static void test_two_vms_of_a_group_get_a_pair(void **state)
{
	struct bench bench;
	char byte;

	(void)state;
	bench_start(&bench);
	for (uint32_t from = 0; from < 2; from++) {
		struct spawner_reply reply;
		int fds[REPLY_FDS_MAX];

		ask(&bench, (struct spawner_request){.kind = SPAWNER_PAIR,
						     .device = from,
						     .number = 1 - from,
						     .type = STREAM,
						     .token = 7});
		reply = await_reply_with(&bench, fds);
		assert_int_equal(reply.kind, SPAWNER_PAIRED);
		assert_int_equal(reply.error, 0);
		assert_int_equal(reply.device, from);
		assert_int_equal(reply.number, 1 - from);
		assert_int_equal(reply.token, 7);
		assert_int_equal(send(fds[0], "x", 1, 0), 1);
		assert_int_equal(recv(fds[1], &byte, 1, 0), 1);
		/* The spawner has kept neither end. */
		close(fds[0]);
		assert_int_equal(recv(fds[1], &byte, 1, 0), 0);
		close(fds[1]);
	}
	bench_stop(&bench);
}

static void test_a_pair_has_the_type_that_was_asked_for(void **state)
{
	int fds[REPLY_FDS_MAX], type = 0;
	socklen_t len = sizeof(type);
	struct bench bench;

	(void)state;
	bench_start(&bench);
	ask(&bench, (struct spawner_request){
			    .kind = SPAWNER_PAIR, .device = 0, .number = 1, .type = SEQPACKET});
	assert_int_equal(await_reply_with(&bench, fds).error, 0);
	assert_int_equal(getsockopt(fds[0], SOL_SOCKET, SO_TYPE, &type, &len), 0);
	assert_int_equal(type, SOCK_SEQPACKET);
	close(fds[0]);
	close(fds[1]);
	bench_stop(&bench);
}

static void test_a_host_socket_has_the_type_that_was_asked_for(void **state)
{
	struct listener streams, messages;
	struct listener_failure failure;
	char stream_path[128], message_path[128];
	struct bench bench;
	int fd, type = 0;
	socklen_t len = sizeof(type);

	(void)state;
	bench_start(&bench);
	(void)snprintf(stream_path, sizeof(stream_path), "%s_1", bench.path);
	(void)snprintf(message_path, sizeof(message_path), "%s_2", bench.path);
	assert_int_equal(listener_open(stream_path, &LISTENER_OWNER_ONLY, &streams, &failure), 0);
	assert_int_equal(
		listener_open_packets(message_path, &LISTENER_OWNER_ONLY, &messages, &failure), 0);
	assert_int_equal(expect_connected(&bench, 2, SEQPACKET, &fd).error, 0);
	assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len), 0);
	assert_int_equal(type, SOCK_SEQPACKET);
	close(fd);
	assert_int_equal(expect_connected(&bench, 1, SEQPACKET, &fd).error, EPROTOTYPE);
	assert_int_equal(expect_connected(&bench, 2, STREAM, &fd).error, EPROTOTYPE);
	assert_int_equal(fd, -1);
	listener_close(&streams);
	listener_close(&messages);
	listener_unlink(&streams);
	listener_unlink(&messages);
	bench_stop(&bench);
}

static void test_a_full_backlog_is_told(void **state)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int fds[8], error = 0;
	struct bench bench;
	size_t n = 0;

	(void)state;
	bench_start(&bench);
	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%s_7", bench.path);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(listener, 1), 0);
	while (n < 8 && !error) {
		error = expect_connected(&bench, 7, STREAM, &fds[n]).error;
		n += !error;
	}
	assert_int_equal(error, EAGAIN);
	while (n)
		close(fds[--n]);
	close(listener);
	(void)unlink(address.sun_path);
	bench_stop(&bench);
}

static void ask_with_fds(const struct bench *bench, struct spawner_request request, const int *fds,
			 size_t n_fds)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(8 * sizeof(int))];
	} control = {.header = {.cmsg_len = CMSG_LEN(n_fds * sizeof(int)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS}};
	struct iovec part = {&request, sizeof(request)};
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = CMSG_SPACE(n_fds * sizeof(int)),
	};

	memcpy(CMSG_DATA(&control.header), fds, n_fds * sizeof(int));
	assert_int_equal(sendmsg(bench->channel, &message, 0), sizeof(request));
}

static struct spawner_reply expect_judged(const struct bench *bench, uint32_t device, int fd)
{
	struct spawner_reply reply;
	int none;

	ask_with_fds(bench,
		     (struct spawner_request){
			     .kind = SPAWNER_JUDGE, .device = device, .type = STREAM, .token = 8},
		     &fd, 1);
	reply = await_reply(bench, &none);
	assert_int_equal(none, -1);
	assert_int_equal(reply.kind, SPAWNER_JUDGED);
	assert_int_equal(reply.device, device);
	assert_int_equal(reply.token, 8);
	return reply;
}

static void test_who_is_at_the_other_end_of_a_socket_is_judged(void **state)
{
	struct spawner_reply reply;
	struct bench bench;
	int pair[2], pipes[2];

	(void)state;
	bench_start(&bench);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	reply = expect_judged(&bench, 0, pair[0]);
	assert_int_equal(reply.error, 0);
	assert_int_equal(reply.number, geteuid());
	assert_int_equal(reply.program, getegid());
	reply = expect_judged(&bench, 1, pair[0]);
	assert_int_equal(reply.error, SPAWNER_E_PEER);
	assert_int_equal(reply.number, geteuid());
	/* Nobody is known of what is no unix socket. */
	assert_int_equal(expect_judged(&bench, 0, pipes[0]).error, SPAWNER_E_PEER);
	/* It keeps none of them. */
	close(pair[0]);
	close(pipes[0]);
	assert_int_equal(read(pair[1], &(char){0}, 1), 0);
	assert_int_equal(poll(&(struct pollfd){.fd = pipes[1]}, 1, 1000 * SANDBOX_SECONDS), 1);
	close(pair[1]);
	close(pipes[1]);
	bench_stop(&bench);
}

static void test_a_guest_reaches_nobody_who_may_not_talk_with_it(void **state)
{
	struct listener_failure failure;
	struct listener listener;
	struct spawner_reply reply;
	struct bench bench;
	char path[128];
	int fd;

	(void)state;
	bench_start(&bench);
	(void)snprintf(path, sizeof(path), "%s_9", bench.path);
	assert_int_equal(listener_open(path, &LISTENER_OWNER_ONLY, &listener, &failure), 0);
	assert_int_equal(expect_connected(&bench, 9, STREAM, &fd).error, 0);
	close(fd);
	ask(&bench, (struct spawner_request){
			    .kind = SPAWNER_CONNECT, .device = 1, .number = 9, .type = STREAM});
	reply = await_reply(&bench, &fd);
	assert_int_equal(reply.error, SPAWNER_E_PEER);
	assert_int_equal(fd, -1);
	listener_close(&listener);
	bench_stop(&bench);
}

static void test_fds_that_a_request_has_not_end_everything(void **state)
{
	static const struct {
		struct spawner_request request;
		size_t n_fds;
	} wrong[] = {
		{{.kind = SPAWNER_JUDGE, .type = STREAM}, 2},
		{{.kind = SPAWNER_JUDGE, .type = STREAM}, 8},
		{{.kind = SPAWNER_JUDGE, .type = STREAM, .number = 1}, 1},
		{{.kind = SPAWNER_JUDGE, .type = 0}, 1},
		{{.kind = SPAWNER_JUDGE, .type = STREAM, .device = N_VMS}, 1},
		{{.kind = SPAWNER_SPAWN}, 1},
		{{.kind = SPAWNER_CONNECT, .type = STREAM}, 1},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		int fds[] = {0, 0, 0, 0, 0, 0, 0, 0};
		struct bench bench;

		bench_start(&bench);
		ask_with_fds(&bench, wrong[i].request, fds, wrong[i].n_fds);
		assert_int_equal(bench_end(&bench), EX_SOFTWARE);
	}
}

static void test_whatever_is_not_permitted_ends_everything(void **state)
{
	static const struct spawner_request requests[] = {
		{.kind = 0},
		{.kind = 5},
		{.kind = UINT32_MAX},
		{.kind = SPAWNER_SPAWN, .device = 1},
		{.kind = SPAWNER_SPAWN, .number = 2},
		{.kind = SPAWNER_SPAWN, .type = 1},
		{.kind = SPAWNER_STOP, .number = 0}, /* none was started yet */
		{.kind = SPAWNER_STOP, .number = UINT32_MAX},
		{.kind = SPAWNER_JUDGE, .type = STREAM}, /* without an fd */
		{.kind = SPAWNER_CONNECT, .device = N_VMS, .type = STREAM},
		{.kind = SPAWNER_CONNECT, .device = UINT32_MAX, .type = STREAM},
		{.kind = SPAWNER_CONNECT, .type = 0},
		{.kind = SPAWNER_CONNECT, .type = 3},
		{.kind = SPAWNER_PAIR, .number = 1, .type = 0},
		{.kind = SPAWNER_PAIR, .number = 1, .type = 3},
		{.kind = SPAWNER_PAIR,
		 .number = 0,
		 .type = STREAM}, /* itself, and no control socket */
		{.kind = SPAWNER_PAIR, .number = 2, .type = STREAM}, /* of other groups */
		{.kind = SPAWNER_PAIR, .device = 2, .number = 1, .type = STREAM},
		{.kind = SPAWNER_PAIR, .number = N_VMS, .type = STREAM},
		{.kind = SPAWNER_PAIR, .device = N_VMS, .type = STREAM},
		{.kind = SPAWNER_RELOADED}, /* there was no reload */
		{.kind = SPAWNER_ALIVE},    /* nobody asked */
		{.kind = SPAWNER_READY, .number = 1},
		{.kind = SPAWNER_RELOAD_NOW}, /* there is no file */
	};

	(void)state;
	for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
		struct bench bench;

		bench_start(&bench);
		ask(&bench, requests[i]);
		assert_int_equal(bench_end(&bench), EX_SOFTWARE);
	}
}

/* VM 4 goes, VM 5 comes to the next place; the front is told, and has not answered yet. */
static void reload(struct bench *bench)
{
	struct spawner_reply reply;
	int channel, fd;

	write_vms(3, 4);
	bench_begin(bench, /* has_file= */ true, NULL);
	/* Its signals are looked at once it answers. */
	channel = expect_worker(bench);
	write_vms(3, 5);
	assert_int_equal(kill(bench->spawner, SIGHUP), 0);
	for (uint32_t kind = 0; kind < SOCKET_RULES; kind++) {
		reply = await_reply(bench, &fd);
		assert_int_equal(reply.kind, SPAWNER_LISTENER);
		assert_int_equal(reply.error, 0);
		assert_int_equal(reply.device, 2);
		assert_int_equal(reply.number, kind);
		assert_true(fd >= 0);
		close(fd);
	}
	reply = await_reply(bench, &fd);
	assert_int_equal(reply.kind, SPAWNER_RELOAD);
	assert_int_equal(reply.number, 1);
	assert_int_equal(reply.error, 0);
	assert_int_equal(fd, -1);
	close(channel); /* and with it the worker, of which EXITED is told */
	reply = await_reply(bench, &fd);
	assert_int_equal(reply.kind, SPAWNER_EXITED);
}

static void test_what_the_front_asked_before_it_knew_of_a_reload_is_refused(void **state)
{
	static const struct spawner_request late[] = {
		{.kind = SPAWNER_CONNECT, .device = 1, .number = 1, .type = STREAM},
		{.kind = SPAWNER_PAIR, .device = 0, .number = 1, .type = STREAM},
	};
	struct spawner_reply reply;
	struct bench bench;
	int fd, pair[2];

	(void)state;
	reload(&bench);
	for (size_t i = 0; i < sizeof(late) / sizeof(late[0]); i++) {
		ask(&bench, late[i]);
		reply = await_reply(&bench, &fd);
		assert_int_equal(reply.error, i == 0 ? ENOENT : EACCES);
		assert_int_equal(fd, -1);
	}
	/* A VM that has gone took its lists along: nobody is let in for that. */
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(expect_judged(&bench, 1, pair[0]).error, ENOENT);
	close(pair[0]);
	close(pair[1]);
	ask(&bench, (struct spawner_request){.kind = SPAWNER_RELOADED, .number = 1});
	/* From now on it knows better. */
	ask(&bench, late[1]);
	assert_int_equal(bench_end(&bench), EX_SOFTWARE);
}

static void test_a_reload_is_answered_once_and_with_its_number(void **state)
{
	static const struct spawner_request wrong[] = {
		{.kind = SPAWNER_RELOADED, .number = 0},
		{.kind = SPAWNER_RELOADED, .number = 2},
		{.kind = SPAWNER_RELOADED, .number = 1, .device = 1},
		{.kind = SPAWNER_RELOADED, .number = 1, .type = STREAM},
	};
	struct bench bench;

	(void)state;
	for (size_t i = 0; i <= sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct spawner_request right = {.kind = SPAWNER_RELOADED, .number = 1};
		bool is_second = i == sizeof(wrong) / sizeof(wrong[0]);

		reload(&bench);
		if (is_second)
			ask(&bench, right);
		ask(&bench, is_second ? right : wrong[i]);
		assert_int_equal(bench_end(&bench), EX_SOFTWARE);
	}
}

static void test_the_front_is_ready_once(void **state)
{
	struct bench bench;

	(void)state;
	bench_start(&bench);
	ask(&bench, (struct spawner_request){.kind = SPAWNER_READY});
	close(expect_worker(&bench)); /* it goes on */
	ask(&bench, (struct spawner_request){.kind = SPAWNER_READY});
	assert_int_equal(bench_end(&bench), EX_SOFTWARE);
}

static void test_a_request_of_a_wrong_size_ends_everything(void **state)
{
	static const char bytes[sizeof(struct spawner_request) + 1] = {SPAWNER_SPAWN};
	static const size_t lengths[] = {1, sizeof(bytes) - 2, sizeof(bytes)};

	(void)state;
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		struct bench bench;

		bench_start(&bench);
		assert_int_equal(send(bench.channel, bytes, lengths[i], 0), lengths[i]);
		assert_int_equal(bench_end(&bench), EX_SOFTWARE);
	}
}

static void test_a_request_with_an_fd_ends_everything(void **state)
{
	struct spawner_request request = {.kind = SPAWNER_SPAWN};
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS}};
	struct iovec part = {&request, sizeof(request)};
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.room),
	};
	struct bench bench;

	(void)state;
	bench_start(&bench);
	memset(CMSG_DATA(&control.header), 0, sizeof(int)); /* stdin */
	assert_int_equal(sendmsg(bench.channel, &message, 0), sizeof(request));
	assert_int_equal(bench_end(&bench), EX_SOFTWARE);
}

static void test_the_death_of_the_front_ends_the_workers(void **state)
{
	struct bench bench;
	int channel;
	char byte;

	(void)state;
	bench_start(&bench);
	(void)expect_spawned(&bench, 1, &channel);
	expect_ready(channel);
	assert_int_equal(kill(bench.front, SIGKILL), 0);
	assert_int_equal(bench_end(&bench), EX_SOFTWARE);
	assert_int_equal(recv(channel, &byte, 1, 0), 0);
	close(channel);
}

/* A front that asks and never reads: its replies fill the channel. */
static void test_a_front_that_does_not_read_cannot_hold_up_the_end(void **state)
{
	struct spawner_request request = {.kind = SPAWNER_CONNECT, .type = STREAM};
	struct bench bench;
	size_t n = 0;

	(void)state;
	bench_start(&bench);
	assert_int_equal(fcntl(bench.channel, F_SETFL, O_NONBLOCK), 0);
	while (n < 100000 && send(bench.channel, &request, sizeof(request), 0) > 0)
		n++;
	assert_int_equal(errno, EAGAIN);
	bench_stop(&bench);
}

static void test_the_buffer_holds_all_connections_of_the_hungriest_vm(void **state)
{
	struct vm_configuration vms[] = {
		{.tx_buffer_size = 256 * 1024, .max_connections = 10},
		{.tx_buffer_size = 1000, .max_connections = 4096},
	};
	struct configuration configuration = {.vms = vms, .n_vms = 2};
	uint64_t size = 77;

	(void)state;
	assert_int_equal(spawner_buffer_size(&configuration, &size), 0);
	assert_true(size >= UINT64_C(4096) * (1000 + SPAWNER_BUFFER_EXTRA));
	assert_int_equal(size % (uint64_t)sysconf(_SC_PAGESIZE), 0);
	assert_int_equal(spawner_files(&configuration), 4096 + SPAWNER_WORKER_FILES);

	size = 77;
	vms[0].tx_buffer_size = vms[0].max_connections = UINT32_MAX;
	assert_int_equal(spawner_buffer_size(&configuration, &size), -EOVERFLOW);
	assert_int_equal(size, 77);
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_spawned_worker_is_ready_and_its_stop_is_told),
		cmocka_unit_test(test_the_exit_code_of_a_worker_is_told),
		cmocka_unit_test(test_a_worker_is_started_from_what_is_installed_now),
		cmocka_unit_test(test_workers_beyond_the_limit_are_refused),
		cmocka_unit_test(test_a_host_socket_is_connected_by_its_port),
		cmocka_unit_test(test_two_vms_of_a_group_get_a_pair),
		cmocka_unit_test(test_a_host_socket_has_the_type_that_was_asked_for),
		cmocka_unit_test(test_a_pair_has_the_type_that_was_asked_for),
		cmocka_unit_test(test_a_full_backlog_is_told),
		cmocka_unit_test(test_who_is_at_the_other_end_of_a_socket_is_judged),
		cmocka_unit_test(test_a_guest_reaches_nobody_who_may_not_talk_with_it),
		cmocka_unit_test(test_fds_that_a_request_has_not_end_everything),
		cmocka_unit_test(test_whatever_is_not_permitted_ends_everything),
		cmocka_unit_test(test_what_the_front_asked_before_it_knew_of_a_reload_is_refused),
		cmocka_unit_test(test_a_reload_is_answered_once_and_with_its_number),
		cmocka_unit_test(test_the_front_is_ready_once),
		cmocka_unit_test(test_a_request_of_a_wrong_size_ends_everything),
		cmocka_unit_test(test_a_request_with_an_fd_ends_everything),
		cmocka_unit_test(test_the_death_of_the_front_ends_the_workers),
		cmocka_unit_test(test_a_front_that_does_not_read_cannot_hold_up_the_end),
		cmocka_unit_test(test_the_buffer_holds_all_connections_of_the_hungriest_vm),
	};
	int failures;

	(void)snprintf(directory, sizeof(directory), "/tmp/vsockd-spawner-XXXXXX");
	if (!mkdtemp(directory))
		return 1;
	failures = cmocka_run_group_tests(tests, NULL, NULL);
	(void)rmdir(directory);
	return failures;
}

int main(int argc, char **argv)
{
	program = argc == 2 ? open(argv[1], O_PATH | O_CLOEXEC) : -1;
	if (program < 0) {
		(void)fprintf(stderr, "usage: test_spawner HELPER\n");
		return 1;
	}
	return sandbox_run_as_both(run);
}
