/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The guest's side of the guest test: process 1 of the guest, linked
 * statically, alone in its file system but for the kernel modules in /modules.
 * It loads them, connects to port 1000 of the host, says "ready" and the reply
 * to the command before (which the host may have missed when all connections
 * were reset), and does what the host says, one command a line:
 *
 *   send PORT BYTES SEED      connect to the host and send a sequence
 *   halfclose PORT BYTES SEED the same, then shut down sending and read to the end
 *   receive PORT              accept one connection, read to the end
 *   answer PORT BYTES SEED    the same, then send a sequence
 *   connect PORT              connect to the host, nothing else
 *   messages PORT N SEED      as halfclose, with SOCK_SEQPACKET and N messages
 *   answer-messages PORT N SEED  as answer, with the same
 *   many PORT N               N connections in a row, 8 bytes there and back on each
 *   parallel PORT N BYTES     N connections at once, each sends the sequence of its number
 *   echo PORT                 from now on send back what comes, on any number of connections
 *   echoing                   how many of those there are now
 *   peer CID                  from now on "the host" above is that CID
 *   reboot, poweroff
 *
 * Commands that accept answer "listening" first. The reply is
 * "done BYTES CHECKSUM" about what was read, or "error ERRNO STEP".
 * With "probe" on the kernel's command line it only says that the guest lives.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "tests/guest/boot.h"
#include "tests/guest/stream.h"

#define CONTROL_PORT	 1000
#define TRANSFER_SECONDS 60

/* Shared with the children: how many are where the others wait for them. */
struct meeting {
	atomic_uint n_connected;
	atomic_uint n_echoing;
};

static struct meeting *meeting;
static int control = -1;
static uint32_t peer = VMADDR_CID_HOST;
static char last_reply[STREAM_LINE_MAX] = "none";

static void set_time_limit(int fd, time_t seconds)
{
	struct timeval limit = {.tv_sec = seconds};

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

static void reply(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void reply(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(last_reply, sizeof(last_reply), format, arguments);
	va_end(arguments);
	dprintf(control, "%s\n", last_reply);
}

static void reply_done(const struct checksum *checksum)
{
	reply("done %" PRIu64 " %016" PRIx64, checksum->n_bytes, checksum_value(checksum));
}

static int connect_with(int type, uint32_t cid, uint32_t port, unsigned int limit_ms)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = cid,
		.svm_port = port,
	};
	struct timeval limit = {
		.tv_sec = limit_ms / 1000,
		.tv_usec = (suseconds_t)(limit_ms % 1000) * 1000,
	};
	int fd = socket(AF_VSOCK, type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit, sizeof(limit));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int error = -errno;

		close(fd);
		return error;
	}
	set_time_limit(fd, TRANSFER_SECONDS);
	return fd;
}

static int connect_to(uint32_t cid, uint32_t port, unsigned int limit_ms)
{
	return connect_with(SOCK_STREAM, cid, port, limit_ms);
}

static int listen_with(int type, uint32_t port, time_t limit_seconds)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_ANY,
		.svm_port = port,
	};
	int fd = socket(AF_VSOCK, type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 64) < 0) {
		int error = -errno;

		close(fd);
		return error;
	}
	set_time_limit(fd, limit_seconds);
	return fd;
}

/* Tell the host, then take one connection. */
static int accept_one(int type, uint32_t port)
{
	int listener = listen_with(type, port, TRANSFER_SECONDS);
	int fd;

	if (listener < 0)
		return listener;
	dprintf(control, "listening\n");
	fd = accept(listener, NULL, NULL);
	if (fd < 0)
		fd = -errno;
	else
		set_time_limit(fd, TRANSFER_SECONDS);
	close(listener);
	return fd;
}

static void do_send(uint32_t port, uint64_t n_bytes, uint64_t seed, bool reads_answer)
{
	struct checksum checksum = {0};
	int fd = connect_to(peer, port, 2000);
	int error;

	if (fd < 0) {
		reply("error %d connect", -fd);
		return;
	}
	error = stream_send(fd, seed, n_bytes);
	if (error < 0) {
		reply("error %d send", -error);
		close(fd);
		return;
	}
	if (reads_answer) {
		shutdown(fd, SHUT_WR);
		error = stream_receive(fd, UINT64_MAX, &checksum);
	}
	close(fd);
	if (error < 0)
		reply("error %d receive", -error);
	else
		reply_done(&checksum);
}

static void do_receive(uint32_t port, uint64_t n_bytes_answer, uint64_t seed)
{
	struct checksum checksum = {0};
	int fd = accept_one(SOCK_STREAM, port);
	int error;

	if (fd < 0) {
		reply("error %d accept", -fd);
		return;
	}
	error = stream_receive(fd, UINT64_MAX, &checksum);
	if (error == 0)
		error = stream_send(fd, seed, n_bytes_answer);
	close(fd);
	if (error < 0)
		reply("error %d transfer", -error);
	else
		reply_done(&checksum);
}

/* Before it is shut down: later the kernel does not say. */
static bool is_of_a_guest(int fd)
{
	struct sockaddr_vm address = {0};
	socklen_t len = sizeof(address);

	return getpeername(fd, (struct sockaddr *)&address, &len) == 0 &&
	       address.svm_family == AF_VSOCK && address.svm_cid > VMADDR_CID_HOST;
}

static void do_messages(uint32_t port, uint64_t n, uint64_t seed)
{
	struct checksum checksum = {0};
	int fd = connect_with(SOCK_SEQPACKET, peer, port, 2000);
	bool has_records;
	int error;

	if (fd < 0) {
		reply("error %d connect", -fd);
		return;
	}
	has_records = is_of_a_guest(fd);
	error = messages_send(fd, seed, n);
	shutdown(fd, SHUT_WR);
	if (error == 0)
		error = messages_receive(fd, has_records, &checksum);
	close(fd);
	if (error < 0)
		reply("error %d transfer", -error);
	else
		reply_done(&checksum);
}

static void do_answer_messages(uint32_t port, uint64_t n, uint64_t seed)
{
	struct checksum checksum = {0};
	int fd = accept_one(SOCK_SEQPACKET, port);
	int error;

	if (fd < 0) {
		reply("error %d accept", -fd);
		return;
	}
	error = messages_receive(fd, is_of_a_guest(fd), &checksum);
	if (error == 0)
		error = messages_send(fd, seed, n);
	close(fd);
	if (error < 0)
		reply("error %d transfer", -error);
	else
		reply_done(&checksum);
}

static void do_connect(uint32_t port)
{
	struct checksum nothing = {0};
	int fd = connect_to(peer, port, 2000);

	if (fd < 0) {
		reply("error %d connect", -fd);
		return;
	}
	close(fd);
	reply_done(&nothing);
}

static int there_and_back(uint32_t port, uint64_t number)
{
	struct checksum checksum = {0};
	int fd = connect_to(peer, port, 2000);
	int error;

	if (fd < 0)
		return fd;
	error = stream_send(fd, number, sizeof(number));
	if (error == 0)
		error = stream_receive(fd, sizeof(number), &checksum);
	close(fd);
	if (error < 0)
		return error;
	return checksum_value(&checksum) == stream_checksum(number, sizeof(number)) ? 0 : -EBADMSG;
}

static void do_many(uint32_t port, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		int error = there_and_back(port, i);

		if (error < 0) {
			reply("error %d connection-%" PRIu64, -error, i);
			return;
		}
	}
	reply("done %" PRIu64 " 0", n);
}

/* Child i of do_parallel(): starts to send when all are connected. */
static int send_with_others(uint32_t port, uint64_t i, uint64_t n, uint64_t n_bytes)
{
	int fd = connect_to(peer, port, 5000);

	if (fd < 0)
		return -fd;
	atomic_fetch_add(&meeting->n_connected, 1);
	for (int n_waits = 0; atomic_load(&meeting->n_connected) < n; n_waits++) {
		if (n_waits > 5000)
			return ETIMEDOUT;
		poll(NULL, 0, 1);
	}
	return -stream_send(fd, i, n_bytes);
}

static void do_parallel(uint32_t port, uint64_t n, uint64_t n_bytes)
{
	pid_t children[64];
	int error = 0;

	if (n > sizeof(children) / sizeof(children[0])) {
		reply("error %d too-many", EINVAL);
		return;
	}
	atomic_store(&meeting->n_connected, 0);
	for (uint64_t i = 0; i < n; i++) {
		children[i] = fork();
		if (children[i] == 0)
			_exit(send_with_others(port, i, n, n_bytes));
	}
	for (uint64_t i = 0; i < n; i++) {
		int status = 0;

		if (children[i] < 0 || waitpid(children[i], &status, 0) < 0)
			error = ECHILD;
		else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
			error = WEXITSTATUS(status);
	}
	if (error)
		reply("error %d child", error);
	else
		reply("done %" PRIu64 " 0", n * n_bytes);
}

static void send_back(int fd)
{
	static char bytes[65536];

	for (;;) {
		ssize_t n = recv(fd, bytes, sizeof(bytes), 0);
		ssize_t n_sent = 0;

		if (n <= 0)
			return;
		while (n_sent < n) {
			ssize_t part = send(fd, bytes + n_sent, (size_t)(n - n_sent), MSG_NOSIGNAL);

			if (part < 0)
				return;
			n_sent += part;
		}
	}
}

static void serve_echo(int listener)
{
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			continue;
		if (fork() == 0) {
			close(listener);
			atomic_fetch_add(&meeting->n_echoing, 1);
			send_back(fd);
			atomic_fetch_sub(&meeting->n_echoing, 1);
			_exit(0);
		}
		close(fd);
	}
}

static void do_echo(uint32_t port)
{
	struct checksum nothing = {0};
	int listener = listen_with(SOCK_STREAM, port, 0);

	if (listener < 0) {
		reply("error %d listen", -listener);
		return;
	}
	if (fork() == 0) {
		close(control);
		serve_echo(listener);
	}
	close(listener);
	reply_done(&nothing);
}

static void do_peer(uint32_t cid)
{
	struct checksum nothing = {0};

	peer = cid;
	reply_done(&nothing);
}

static void obey(const char *line)
{
	char command[16];
	uint32_t port = 0;
	uint64_t a = 0, b = 0;

	if (sscanf(line, "%15s %" SCNu32 " %" SCNu64 " %" SCNu64, command, &port, &a, &b) < 1)
		return;
	if (!strcmp(command, "send"))
		do_send(port, a, b, false);
	else if (!strcmp(command, "halfclose"))
		do_send(port, a, b, true);
	else if (!strcmp(command, "receive"))
		do_receive(port, 0, 0);
	else if (!strcmp(command, "answer"))
		do_receive(port, a, b);
	else if (!strcmp(command, "messages"))
		do_messages(port, a, b);
	else if (!strcmp(command, "answer-messages"))
		do_answer_messages(port, a, b);
	else if (!strcmp(command, "connect"))
		do_connect(port);
	else if (!strcmp(command, "many"))
		do_many(port, a);
	else if (!strcmp(command, "parallel"))
		do_parallel(port, a, b);
	else if (!strcmp(command, "echo"))
		do_echo(port);
	else if (!strcmp(command, "echoing"))
		reply("done %u 0", atomic_load(&meeting->n_echoing));
	else if (!strcmp(command, "peer"))
		do_peer(port);
	else if (!strcmp(command, "reboot"))
		reboot(RB_AUTOBOOT);
	else if (!strcmp(command, "poweroff"))
		reboot(RB_POWER_OFF);
	else
		reply("error %d unknown-command", EINVAL);
}

static bool is_probe(void)
{
	static char line[4096];
	int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);

	close(fd);
	return n > 0 && strstr(line, "vsockd.probe");
}

int main(void)
{
	boot_console();
	signal(SIGPIPE, SIG_IGN);
	meeting = mmap(NULL, sizeof(*meeting), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		       -1, 0);
	if (is_probe() || meeting == MAP_FAILED) {
		printf("agent: the guest lives\n");
		reboot(RB_POWER_OFF);
	}
	boot_modules();
	for (;;) {
		char line[STREAM_LINE_MAX];

		/* Short: a request that a dying back-end swallowed gets no answer at all. */
		control = connect_to(VMADDR_CID_HOST, CONTROL_PORT, 300);
		if (control < 0) {
			printf("agent: no connection to the host: %s\n", strerror(-control));
			poll(NULL, 0, 20);
			continue;
		}
		set_time_limit(control, 0);
		dprintf(control, "ready %s\n", last_reply);
		while (stream_read_line(control, line) >= 0)
			obey(line);
		printf("agent: the connection to the host ended\n");
		close(control);
	}
}
