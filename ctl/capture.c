/* SPDX-License-Identifier: Apache-2.0 */

/*
 * vsockctl capture: records of the worker (worker/capture.h) into a file that
 * Wireshark opens: pcap with the link type that Linux has for vsock monitors
 * (linux/vsockmon.h).
 */

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "ctl/client.h"
#include "ctl/command.h"
#include "ipc/observation.h"

#define PAYLOAD_DEFAULT 128
#define ROUND_RECORDS	64 /* then signals are let in */

/* A worker that was told to stop does, unless its VM is just being handed over. */
#define END_MS 5000
/* What a socket holds of records is far less, and a busy guest adds to them for ever. */
#define REST_RECORDS 4096
#define HEADER_LEN   44 /* struct virtio_vsock_hdr */

/* https://www.tcpdump.org/linktypes.html */
#define LINKTYPE_VSOCK 271

/* pcap-savefile(5); in the byte order of this machine, which its magic tells. */
struct file_header {
	uint32_t magic;
	uint16_t major, minor;
	uint32_t zone, accuracy, length_max, link_type;
};

struct record_header {
	uint32_t seconds, microseconds;
	uint32_t captured_len, len;
};

/* linux/vsockmon.h, all little-endian. */
struct monitor_header {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port;
	uint16_t op, transport, transport_len;
	uint8_t reserved[2];
};

enum {
	MONITOR_OP_UNKNOWN,
	MONITOR_OP_CONNECT,
	MONITOR_OP_DISCONNECT,
	MONITOR_OP_CONTROL,
	MONITOR_OP_PAYLOAD
};
#define MONITOR_TRANSPORT_VIRTIO 2

_Static_assert(sizeof(struct file_header) == 24, "as in the file");
_Static_assert(sizeof(struct record_header) == 16, "as in the file");
_Static_assert(sizeof(struct monitor_header) == 32, "as in the file");

/* Of each record, before the payload. */
#define FIXED_LEN ((uint32_t)sizeof(struct monitor_header) + HEADER_LEN)

struct record {
	struct capture_prefix prefix;
	uint8_t header[HEADER_LEN];
	uint8_t payload[CAPTURE_PAYLOAD_MAX];
} __attribute__((packed));

static volatile sig_atomic_t is_to_end;

static void on_signal(int signal)
{
	(void)signal;
	is_to_end = 1;
}

static uint32_t le32(const uint8_t *bytes)
{
	uint32_t value;

	memcpy(&value, bytes, sizeof(value));
	return value;
}

/* virtio 1.3, 5.10.6: the operation is at byte 30. */
static uint16_t monitor_op(const uint8_t *header)
{
	switch (header[30]) {
	case 1: /* REQUEST, RESPONSE */
	case 2:
		return MONITOR_OP_CONNECT;
	case 3: /* RST, SHUTDOWN */
	case 4:
		return MONITOR_OP_DISCONNECT;
	case 5: /* RW */
		return MONITOR_OP_PAYLOAD;
	case 6: /* CREDIT_UPDATE, CREDIT_REQUEST */
	case 7:
		return MONITOR_OP_CONTROL;
	default:
		return MONITOR_OP_UNKNOWN;
	}
}

static void write_record(FILE *file, const struct record *record)
{
	struct monitor_header monitor = {
		.src_port = le32(record->header + 16),
		.dst_port = le32(record->header + 20),
		.op = monitor_op(record->header),
		.transport = MONITOR_TRANSPORT_VIRTIO,
		.transport_len = HEADER_LEN,
	};
	struct record_header header = {
		.captured_len = FIXED_LEN + record->prefix.captured_len,
		.len = FIXED_LEN + record->prefix.payload_len,
	};
	struct timespec now = {0};

	clock_gettime(CLOCK_REALTIME, &now);
	header.seconds = (uint32_t)now.tv_sec;
	header.microseconds = (uint32_t)(now.tv_nsec / 1000);
	memcpy(&monitor.src_cid, record->header, sizeof(monitor.src_cid));
	memcpy(&monitor.dst_cid, record->header + 8, sizeof(monitor.dst_cid));
	fwrite(&header, sizeof(header), 1, file);
	fwrite(&monitor, sizeof(monitor), 1, file);
	fwrite(record->header, HEADER_LEN, 1, file);
	fwrite(record->payload, 1, record->prefix.captured_len, file);
}

/* The worker is not believed either: a record is as long as it says. */
static bool is_sound(const struct record *record, size_t len)
{
	if (len == sizeof(record->prefix))
		return record->prefix.captured_len == 0 && record->prefix.payload_len == 0;
	return len >= sizeof(record->prefix) + HEADER_LEN &&
	       record->prefix.captured_len == len - sizeof(record->prefix) - HEADER_LEN &&
	       record->prefix.captured_len <= record->prefix.payload_len &&
	       record->prefix.payload_len <= UINT32_MAX - FIXED_LEN;
}

static int write_file_header(FILE *file)
{
	const struct file_header header = {
		.magic = 0xa1b2c3d4,
		.major = 2,
		.minor = 4,
		.length_max = sizeof(struct monitor_header) + HEADER_LEN + CAPTURE_PAYLOAD_MAX,
		.link_type = LINKTYPE_VSOCK,
	};

	fwrite(&header, sizeof(header), 1, file);
	return fflush(file) == 0 ? 0 : complain(EX_IOERR, "cannot write: %s", strerror(errno));
}

struct capture {
	int socket;
	FILE *file;
	uint64_t n_records, n_dropped;
};

enum { TAKEN = -1, EMPTY = -2, CLOSED = -3 };

/* One record; or an exit code. */
static int take(struct capture *capture)
{
	static struct record record;
	ssize_t n = recv(capture->socket, &record, sizeof(record), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return EMPTY;
	if (n <= 0)
		return CLOSED;
	if (!is_sound(&record, (size_t)n))
		return complain(EX_PROTOCOL, "a record that is none");
	capture->n_dropped += record.prefix.n_dropped;
	if ((size_t)n > sizeof(record.prefix)) {
		capture->n_records++;
		write_record(capture->file, &record);
	}
	if (ferror(capture->file))
		return complain(EX_IOERR, "cannot write: %s", strerror(errno));
	return TAKEN;
}

/* Until a signal comes (EMPTY), or it ends. */
static int copy(struct capture *capture)
{
	static const struct timespec at_once = {0};
	struct pollfd readable = {.fd = capture->socket, .events = POLLIN};
	sigset_t unblocked;
	int r = TAKEN;

	sigemptyset(&unblocked);
	while (!is_to_end && (r == TAKEN || r == EMPTY)) {
		bool is_empty;

		r = take(capture);
		is_empty = r == EMPTY;
		/* What is there is to be seen by who reads the file along. */
		if (is_empty && fflush(capture->file) != 0)
			return complain(EX_IOERR, "cannot write: %s", strerror(errno));
		if (is_empty || capture->n_records % ROUND_RECORDS == 0)
			(void)ppoll(&readable, 1, is_empty ? NULL : &at_once, &unblocked);
	}
	return is_to_end ? EMPTY : r;
}

/*
 * What is there by now, then the end is asked for, and then what comes until it does:
 * the last record says what else was left out.
 */
static int drain(struct capture *capture, struct client *client)
{
	struct pollfd readable = {.fd = capture->socket, .events = POLLIN};
	int r = TAKEN;

	for (unsigned int n = 0; r == TAKEN && n < REST_RECORDS; n++)
		r = take(capture);
	if (r != TAKEN && r != EMPTY)
		return r == CLOSED ? 0 : r;
	client_close(client);
	do
		r = take(capture);
	while (r == TAKEN || (r == EMPTY && poll(&readable, 1, END_MS) > 0));
	return r < 0 ? 0 : r;
}

static void let_signals_end_it(void)
{
	const struct sigaction action = {.sa_handler = on_signal};
	sigset_t signals;

	/* Blocked but while it waits, so that none is missed in between. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	(void)sigprocmask(SIG_BLOCK, &signals, NULL);
	(void)sigaction(SIGINT, &action, NULL);
	(void)sigaction(SIGTERM, &action, NULL);
}

static int run(struct capture *capture, struct client *client)
{
	const Control__Reply *reply;
	int r = copy(capture);

	if (r == EMPTY)
		r = drain(capture, client);
	/* vsockd has said why, or is gone. */
	if (r == CLOSED)
		r = -client_receive(client, &reply);
	if (fflush(capture->file) != 0 && r == 0)
		r = complain(EX_IOERR, "cannot write: %s", strerror(errno));
	fprintf(stderr, "%" PRIu64 " packets, %" PRIu64 " left out\n", capture->n_records,
		capture->n_dropped);
	return r;
}

int capture_run(const struct context *context)
{
	const char *path = context->argv[1];
	uint64_t cid, length = PAYLOAD_DEFAULT;
	struct capture capture = {.file = stdout};
	Control__Request request;
	struct client client;
	int r;

	r = command_read_cid(context->argv[0], &cid);
	if (r == 0 && context->argc > 2)
		r = command_read_number("bytes", context->argv[2], CAPTURE_PAYLOAD_MAX, &length);
	if (r == 0)
		r = client_open(context->path, &client);
	if (r != 0)
		return r;
	request = client_request(CONTROL_CAPTURE, cid);
	request.number = (uint32_t)length;
	r = client_send(&client, &request);
	capture.socket = r == 0 ? client_receive_socket(&client, "the capture") : -r;
	if (capture.socket < 0)
		return -capture.socket;
	/* Only now: a VM that there is not costs no file. It is the guest's business. */
	(void)umask(S_IRWXG | S_IRWXO);
	if (strcmp(path, "-") != 0)
		capture.file = fopen(path, "we");
	if (!capture.file)
		return complain(EX_CANTCREAT, "\"%.100s\": %s", path, strerror(errno));
	r = write_file_header(capture.file);
	if (r != 0)
		return r;
	let_signals_end_it();
	r = run(&capture, &client);
	client_close(&client);
	return r;
}
