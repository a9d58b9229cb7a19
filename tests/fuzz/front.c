/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The front with two VMs, in this process: everybody it talks to is played by the input.
 * Front-ends send vhost-user messages, workers say what they like or what they should,
 * host programs and operators connect, the spawner answers well or badly, time passes.
 * Whatever happened, the front goes on: it asks the spawner and tells workers what they
 * can understand, holds no fd too many, and a front-end that comes next is served.
 *
 * The loop is the front's own, which is why its file is part of this one; it is told
 * what time it is, and never sleeps.
 */

#include <sys/epoll.h>
#include <time.h>

static int fuzz_clock_gettime(clockid_t clock, struct timespec *ret);
static int fuzz_epoll_wait(int epoll, struct epoll_event *events, int n_max);

#define clock_gettime(clock, ret) fuzz_clock_gettime(clock, ret)
#define epoll_wait(epoll, events, n_max, wait_ms)                                                  \
	((void)(wait_ms), fuzz_epoll_wait(epoll, events, n_max))
#include "broker/front.c"
#undef clock_gettime
#undef epoll_wait

#include <fcntl.h>
#include <signal.h>
#include <sys/un.h>

#include "ipc/control_message.h"
#include "tests/fuzz/drafts.h"
#include "tests/fuzz/ipc.h"

#define N_VMS		2
#define WORKERS		32
#define WORKERS_AT_ONCE (N_VMS * SPAWNER_WORKERS_PER_VM + SPAWNER_WORKERS_SPARE)
#define CLIENTS		4
#define PROGRAMS	16
#define STEPS_AT_MOST	200
#define N_FILES		256

struct fake_worker {
	uint32_t number;
	int channel; /* -1: it is no more */
	enum message_state state;
	uint32_t sequence; /* of the last command */
	uint64_t features;
	bool is_quarantined;
};

static struct {
	struct input *input;
	struct front front;
	struct configuration configuration;
	struct vm_configuration vms[N_VMS];
	struct sockets sockets;
	struct vm_sockets vm_sockets[N_VMS];
	uint64_t now; /* ms */
	int spawner;
	struct fake_worker workers[WORKERS];
	uint32_t n_workers, n_spawned;
	bool is_spawner_bad, has_said_ready;
	int frontends[N_VMS];	/* -1: none */
	int clients[CLIENTS];	/* of the control socket */
	int programs[PROGRAMS]; /* the other ends of host sockets */
	struct draft draft;
} f;

static int fuzz_clock_gettime(clockid_t clock, struct timespec *ret)
{
	(void)clock;
	ret->tv_sec = (time_t)(f.now / 1000);
	ret->tv_nsec = (long)(f.now % 1000) * 1000000;
	return 0;
}

static int fuzz_epoll_wait(int epoll, struct epoll_event *events, int n_max)
{
	return epoll_wait(epoll, events, n_max, 0);
}

/* ---- sockets ---- */

static void close_socket(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* At an address that the kernel chooses and no file system sees. */
static int listen_anywhere(int type)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(sa_family_t)) < 0 ||
	    listen(fd, 16) < 0)
		abort();
	return fd;
}

/* -1 when its queue is full. */
static int connect_to(int listener, int type)
{
	struct sockaddr_un address;
	socklen_t len = sizeof(address);
	int fd = socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0 || getsockname(listener, (struct sockaddr *)&address, &len) < 0)
		abort();
	if (connect(fd, (struct sockaddr *)&address, len) < 0)
		close_socket(&fd);
	return fd;
}

/* A pair, one end of which is kept as a host program's. */
static int make_host_socket(void)
{
	size_t at = input_below(f.input, PROGRAMS);
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	close_socket(&f.programs[at]);
	f.programs[at] = pair[0];
	return pair[1];
}

/* ---- the spawner ---- */

static void reply(const struct spawner_reply *reply, const int *fds, size_t n_fds)
{
	union {
		char bytes[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr alignment;
	} control = {.bytes = {0}};
	struct iovec iov = {(void *)(uintptr_t)reply, sizeof(*reply)};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *cmsg;

	if (n_fds > 0) {
		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		cmsg = CMSG_FIRSTHDR(&message);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(cmsg), fds, n_fds * sizeof(int));
	}
	CLAIM(sendmsg(f.spawner, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(*reply));
	for (size_t i = 0; i < n_fds; i++)
		close(fds[i]);
}

static int choose_error(void)
{
	static const int errors[] = {EAGAIN, ECONNREFUSED, EMFILE, ENOENT};

	return errors[input_below(f.input, 4)];
}

static bool fails(void)
{
	return f.is_spawner_bad && input_u8(f.input) % 2;
}

static void end_worker(struct fake_worker *worker, int status)
{
	const struct spawner_reply exited = {
		.kind = SPAWNER_EXITED,
		.error = status,
		.number = worker->number,
	};

	close_socket(&worker->channel);
	f.n_workers--;
	reply(&exited, NULL, 0);
}

static void spawn(const struct spawner_request *request)
{
	struct spawner_reply spawned = {
		.kind = SPAWNER_SPAWNED,
		.number = f.n_spawned,
		.device = 1000 + f.n_spawned,
		.token = request->token,
		.buffer_size = FUZZ_MEMORY_SIZE,
		/* Another one was installed meanwhile. */
		.program = request->number || !f.is_spawner_bad ? 0 : f.n_spawned,
	};
	struct fake_worker *worker = f.workers;
	int pair[2], fds[2];

	while (worker < f.workers + WORKERS && worker->channel >= 0)
		worker++;
	if (f.n_workers >= WORKERS_AT_ONCE || fails()) {
		spawned.error = f.n_workers >= WORKERS_AT_ONCE ? EAGAIN : choose_error();
		reply(&spawned, NULL, 0);
		return;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	*worker = (struct fake_worker){
		.number = f.n_spawned++,
		.channel = pair[0],
		.state = MESSAGE_BEFORE_READY,
	};
	f.n_workers++;
	fds[0] = pair[1];
	fds[1] = fuzz_open(FUZZ_FD_MEMORY); /* its buffers */
	reply(&spawned, fds, 2);
}

static void stop(const struct spawner_request *request)
{
	for (size_t i = 0; i < WORKERS; i++)
		if (f.workers[i].channel >= 0 && f.workers[i].number == request->number)
			end_worker(&f.workers[i], SIGKILL);
}

static bool is_type(uint32_t type)
{
	return type == ENDPOINT_STREAM || type == ENDPOINT_MESSAGES;
}

static void connect_host(const struct spawner_request *request)
{
	struct spawner_reply connected = {
		.kind = SPAWNER_CONNECTED,
		.device = request->device,
		.number = request->number,
		.token = request->token,
	};
	int fd;

	CLAIM(request->device < N_VMS && is_type(request->type));
	if (fails()) {
		connected.error = choose_error();
		reply(&connected, NULL, 0);
		return;
	}
	connected.error = f.is_spawner_bad && input_u8(f.input) % 4 == 0 ? EINPROGRESS : 0;
	fd = make_host_socket();
	reply(&connected, &fd, 1);
}

static void pair_up(const struct spawner_request *request)
{
	struct spawner_reply paired = {
		.kind = SPAWNER_PAIRED,
		.device = request->device,
		.number = request->number,
		.token = request->token,
	};
	int pair[2];

	CLAIM(request->device < N_VMS && request->number < N_VMS && is_type(request->type));
	if (fails()) {
		paired.error = choose_error();
		reply(&paired, NULL, 0);
		return;
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	reply(&paired, pair, 2);
}

/* Anything else would end the spawner, and all VMs with it. */
static void serve_request(const struct spawner_request *request)
{
	switch (request->kind) {
	case SPAWNER_SPAWN:
		CLAIM(request->device == 0 && request->number <= 1 && request->type == 0);
		CLAIM(request->token <= N_VMS);
		spawn(request);
		return;
	case SPAWNER_STOP:
		CLAIM(request->device == 0 && request->type == 0);
		CLAIM(request->number < f.n_spawned);
		stop(request);
		return;
	case SPAWNER_CONNECT:
		connect_host(request);
		return;
	case SPAWNER_PAIR:
		pair_up(request);
		return;
	case SPAWNER_LOG_LEVEL:
		CLAIM(request->number >= LOG_ERR && request->number <= LOG_DEBUG);
		return;
	case SPAWNER_READY:
		CLAIM(!f.has_said_ready);
		f.has_said_ready = true;
		return;
	default:
		fuzz_fail("a request that there is", __FILE__, __LINE__);
	}
}

static void serve_spawner(void)
{
	struct spawner_request request;
	ssize_t n;

	while ((n = recv(f.spawner, &request, sizeof(request), MSG_DONTWAIT)) > 0) {
		CLAIM(n == sizeof(request));
		serve_request(&request);
	}
}

/* ---- the loop ---- */

static void run(int n_rounds)
{
	for (int i = 0; i < n_rounds; i++) {
		run_once(&f.front);
		log_open(-1); /* an operator may have asked for more */
		CLAIM(f.front.exit_code == -1);
		serve_spawner();
	}
}

/* ---- workers ---- */

static struct fake_worker *choose_worker(void)
{
	uint32_t start = input_below(f.input, WORKERS);

	for (uint32_t i = 0; i < WORKERS; i++)
		if (f.workers[(start + i) % WORKERS].channel >= 0)
			return &f.workers[(start + i) % WORKERS];
	return NULL;
}

static void send_packet(const struct fake_worker *worker, const struct channel_packet *packet)
{
	/* There may be no room, or nobody any more. */
	(void)!channel_send(worker->channel, packet);
}

static void say(const struct fake_worker *worker, const Vsockd__Envelope *envelope)
{
	struct channel_packet packet;

	message_encode(envelope, -1, &packet);
	send_packet(worker, &packet);
}

/* What is no Ready ends the worker, so to the fake it may as well have been one. */
static void say_anything(struct fake_worker *worker, const struct channel_packet *packet)
{
	send_packet(worker, packet);
	if (worker->state == MESSAGE_BEFORE_READY)
		worker->state = MESSAGE_SPARE;
}

static void say_done(const struct fake_worker *worker, int status, uint32_t value)
{
	Vsockd__Done done = VSOCKD__DONE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	done.sequence = worker->sequence;
	done.status = status;
	done.value = value;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_DONE;
	envelope.done = &done;
	say(worker, &envelope);
}

static void say_ready(struct fake_worker *worker)
{
	Vsockd__Ready ready = VSOCKD__READY__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	ready.version = MESSAGE_VERSION;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_READY;
	envelope.ready = &ready;
	say(worker, &envelope);
	worker->state = MESSAGE_SPARE;
}

/* The end of a transfer, as a worker tells it that read or wrote a good state. */
static void say_state(const struct fake_worker *worker, bool is_load)
{
	Vsockd__StateInfo info = VSOCKD__STATE_INFO__INIT;
	Vsockd__StateDone done = VSOCKD__STATE_DONE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	info.flags = input_below(f.input, 4);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_STATE_INFO;
	envelope.state_info = &info;
	if (is_load)
		say(worker, &envelope);
	done.is_good = true;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_STATE_DONE;
	envelope.state_done = &done;
	say(worker, &envelope);
}

/* What a command makes of a worker that obeys. */
static void note_command(struct fake_worker *worker, const Vsockd__Envelope *envelope)
{
	switch (envelope->body_case) {
	case VSOCKD__ENVELOPE__BODY_ASSIGN:
	case VSOCKD__ENVELOPE__BODY_HANDOVER_RESUME:
	case VSOCKD__ENVELOPE__BODY_HANDOVER_COMMIT:
		worker->state = MESSAGE_ASSIGNED;
		return;
	case VSOCKD__ENVELOPE__BODY_HANDOVER_POOL:
		worker->state = MESSAGE_TAKING;
		return;
	case VSOCKD__ENVELOPE__BODY_FEATURES:
		worker->features = envelope->features->features;
		return;
	case VSOCKD__ENVELOPE__BODY_QUARANTINE:
		worker->is_quarantined = envelope->quarantine->is_on;
		return;
	default:
		return;
	}
}

/* The next command, which a worker understands in its state; false when there is none. */
static bool hear(struct fake_worker *worker, Vsockd__Envelope__BodyCase *ret_type)
{
	const Vsockd__Envelope *envelope;
	struct channel_packet packet;
	const char *reason;
	int r = channel_receive(worker->channel, &packet);

	if (r == CHANNEL_E_AGAIN)
		return false;
	if (r != 0) {
		CLAIM(r == CHANNEL_E_CLOSED);
		end_worker(worker, 0);
		return false;
	}
	CLAIM(worker->state != MESSAGE_BEFORE_READY);
	envelope = message_decode(&packet, MESSAGE_TO_WORKER, worker->state, &reason);
	CLAIM(envelope);
	if (packet.fd >= 0)
		close(packet.fd);
	*ret_type = envelope->body_case;
	note_command(worker, envelope);
	if (message_rule(envelope->body_case)->is_command)
		worker->sequence = envelope->sequence;
	else
		*ret_type = VSOCKD__ENVELOPE__BODY__NOT_SET; /* no answer */
	return true;
}

/* Tells of no connection; or it is busy, which is no lie either. */
static void hand_over(struct fake_worker *worker)
{
	Vsockd__HandoverDevice device = VSOCKD__HANDOVER_DEVICE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	if (input_u8(f.input) % 4 == 1) {
		say_done(worker, -EBUSY, 0);
		return;
	}
	worker->state = MESSAGE_FROZEN;
	device.is_quarantined = worker->is_quarantined;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER_DEVICE;
	envelope.handover_device = &device;
	say(worker, &envelope);
	say_done(worker, 0, 0);
}

static void answer(struct fake_worker *worker, Vsockd__Envelope__BodyCase type)
{
	switch (type) {
	case VSOCKD__ENVELOPE__BODY__NOT_SET:
		return;
	case VSOCKD__ENVELOPE__BODY_HANDOVER:
		hand_over(worker);
		return;
	case VSOCKD__ENVELOPE__BODY_RING_STOP:
		/* Of a packed ring 0 is a position whatever its size. */
		say_done(worker, 0, worker->features & VIRTIO_F_RING_PACKED ? 0 : worker->sequence);
		return;
	case VSOCKD__ENVELOPE__BODY_STATE_LOAD:
	case VSOCKD__ENVELOPE__BODY_STATE_SAVE:
		say_done(worker, 0, 0);
		say_state(worker, type == VSOCKD__ENVELOPE__BODY_STATE_LOAD);
		return;
	default:
		say_done(worker, 0, 0);
	}
}

/* As a worker should. false when there was nothing to do. */
static bool behave(struct fake_worker *worker)
{
	bool has_acted = worker->state == MESSAGE_BEFORE_READY;
	Vsockd__Envelope__BodyCase type;

	if (worker->state == MESSAGE_BEFORE_READY)
		say_ready(worker);
	while (worker->channel >= 0 && hear(worker, &type)) {
		has_acted = true;
		answer(worker, type);
	}
	return has_acted || worker->channel < 0;
}

static void all_behave(void)
{
	bool goes_on = true;

	for (int i = 0; i < 100 && goes_on; i++) {
		goes_on = false;
		for (size_t k = 0; k < WORKERS; k++)
			if (f.workers[k].channel >= 0)
				goes_on |= behave(&f.workers[k]);
		run(2);
	}
}

/* Any message that a worker may know of, in any state. */
static void lie(struct fake_worker *worker)
{
	const struct ipc_hints hints = {.sequence = worker->sequence, .name = "type", .value = 1};
	Vsockd__Envelope__BodyCase type;
	struct channel_packet packet;

	while (worker->channel >= 0 && hear(worker, &type))
		;
	if (worker->channel < 0)
		return;
	message_encode(ipc_make(f.input, MESSAGE_TO_FRONT, &hints), -1, &packet);
	say_anything(worker, &packet);
}

static void babble(struct fake_worker *worker)
{
	struct channel_packet packet = {.fd = -1};
	uint8_t choice = input_u8(f.input);

	packet.len = choice % 64;
	input_copy(f.input, packet.bytes, packet.len);
	if (choice & 0x80)
		packet.fd = fuzz_open_any(f.input);
	say_anything(worker, &packet);
	if (packet.fd >= 0)
		close(packet.fd);
}

static void fail(struct fake_worker *worker)
{
	/* The channel first: EXITED comes when the process was waited for. */
	end_worker(worker, input_u8(f.input) & 1 ? SIGSYS : 0);
}

static void let_a_worker_act(uint8_t choice)
{
	struct fake_worker *worker = choose_worker();

	if (!worker)
		return;
	switch (choice % 8) {
	case 0:
		babble(worker);
		return;
	case 1:
		fail(worker);
		return;
	case 2:
		say_done(worker, -EIO, 0);
		return;
	case 3:
		behave(worker);
		return;
	default:
		lie(worker);
	}
}

/* ---- front-ends ---- */

static void read_replies(int *frontend)
{
	struct vhost_user_header header;
	uint8_t bytes[4096];
	ssize_t n;

	while (*frontend >= 0 && (n = recv(*frontend, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0)
		/* One reply or several, each whole. */
		for (ssize_t at = 0; at < n; at += (ssize_t)(sizeof(header) + header.size)) {
			CLAIM(n - at >= (ssize_t)sizeof(header));
			memcpy(&header, bytes + at, sizeof(header));
			CLAIM(header.flags == VHOST_USER_REPLY_FLAGS);
			CLAIM(header.size <= (size_t)(n - at) - sizeof(header));
		}
}

static void let_a_frontend_act(uint8_t choice)
{
	size_t vm = choice & 1;
	int *frontend = &f.frontends[vm];

	read_replies(frontend);
	if (*frontend < 0) {
		*frontend = connect_to(f.vm_sockets[vm].all[SOCKET_FRONTEND].fd, SOCK_STREAM);
		return;
	}
	if ((choice & 0x3e) == 2) {
		close_socket(frontend);
		return;
	}
	draft_make(&f.draft, f.input, &f.front.devices[vm].session);
	if (!draft_offer(&f.draft, *frontend))
		close_socket(frontend);
	draft_drop(&f.draft);
}

/* ---- the host ---- */

static void let_a_program_act(uint8_t choice)
{
	int *program = &f.programs[choice % PROGRAMS];

	if (*program >= 0)
		close_socket(program);
	else
		*program = connect_to(f.vm_sockets[choice & 1].all[SOCKET_HOST].fd, SOCK_STREAM);
}

static void hear_the_front(int client)
{
	struct channel_packet packet;

	while (channel_receive(client, &packet) == 0) {
		CLAIM(control_decode_reply(&packet));
		if (packet.fd >= 0)
			close(packet.fd);
	}
}

static void ask(int client)
{
	static const uint32_t commands[] = {
		CONTROL_STATUS,	  CONTROL_SHOW,	   CONTROL_CONNECTIONS, CONTROL_KILL,
		CONTROL_COUNTERS, CONTROL_METRICS, CONTROL_LOG_LEVEL,	CONTROL_CONNECT,
		CONTROL_LISTEN,	  CONTROL_REPLACE, CONTROL_SUSPEND,	CONTROL_RESUME,
		UINT32_MAX, /* there is none */
	};
	Control__Request request = CONTROL__REQUEST__INIT;
	struct channel_packet packet = {.fd = -1};
	uint8_t choice = input_u8(f.input);

	request.version = CONTROL_VERSION;
	request.command = commands[choice % (sizeof(commands) / sizeof(commands[0]))];
	request.cid = choice & 0x40 ? 0 : 3 + (choice >> 4 & 1);
	request.number = input_u8(f.input);
	request.port = input_u8(f.input);
	control_encode_request(&request, -1, &packet);
	if (choice & 0x80) {
		packet.len = input_below(f.input, 64);
		input_copy(f.input, packet.bytes, packet.len);
		packet.fd = input_u8(f.input) & 1 ? fuzz_open_any(f.input) : -1;
	}
	(void)!channel_send(client, &packet);
	if (packet.fd >= 0)
		close(packet.fd);
}

static void let_an_operator_act(uint8_t choice)
{
	int *client = &f.clients[choice % CLIENTS];

	if (*client < 0) {
		*client = connect_to(f.sockets.control.fd, SOCK_SEQPACKET);
		return;
	}
	hear_the_front(*client);
	if ((choice & 0x1c) == 4)
		close_socket(client);
	else
		ask(*client);
}

/* ---- begin and end ---- */

static void configure(void)
{
	static char path[] = "uds", group[] = "default", *groups[] = {group};

	for (size_t i = 0; i < N_VMS; i++) {
		f.vms[i] = (struct vm_configuration){
			.guest_cid = 3 + i,
			.socket = path,
			.socket_fd = -1,
			.uds_path = path,
			.groups = groups,
			.n_groups = 1,
			.tx_buffer_size = 4096,
			.queue_size = 128,
			.max_connections = 6,
			.max_handshakes = 4,
			.offers = i ? CONFIGURATION_OFFER_IN_BAND | CONFIGURATION_OFFER_GPA : 0,
		};
		for (size_t k = 0; k < SOCKETS_MAX; k++)
			f.vm_sockets[i].all[k].fd = -1;
		f.vm_sockets[i].all[SOCKET_FRONTEND].fd = listen_anywhere(SOCK_STREAM);
		f.vm_sockets[i].all[SOCKET_HOST].fd = listen_anywhere(SOCK_STREAM);
	}
	f.configuration = (struct configuration){
		.vms = f.vms,
		.n_vms = N_VMS,
		.log_level = LOG_ERR,
		.experiments = CONFIGURATION_EXPERIMENT_SUSPEND,
	};
	f.sockets = (struct sockets){.vms = f.vm_sockets, .n_vms = N_VMS};
	f.sockets.control.fd = listen_anywhere(SOCK_SEQPACKET);
	f.sockets.metrics.fd = -1;
}

static void begin(struct input *input)
{
	const struct front_setup setup = {
		.configuration = &f.configuration,
		.sockets = &f.sockets,
		.n_files = N_FILES,
		.spawner = -1,
		.exporter = -1,
	};
	struct front_setup with_spawner = setup;
	int pair[2];

	memset(&f, 0, sizeof(f));
	f.input = input;
	f.now = 1000000;
	memset(f.frontends, -1, sizeof(f.frontends));
	memset(f.clients, -1, sizeof(f.clients));
	memset(f.programs, -1, sizeof(f.programs));
	for (size_t i = 0; i < WORKERS; i++)
		f.workers[i].channel = -1;
	configure();
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	f.spawner = pair[0];
	with_spawner.spawner = pair[1];
	f.front = (struct front){
		.configuration = &f.configuration,
		.n_devices = N_VMS,
		.spawner = pair[1],
		.now = f.now,
		.exit_code = -1,
	};
	CLAIM(prepare(&f.front, &with_spawner));
	f.front.seed = 1; /* the same each time */
	workers_replenish(&f.front);
	/* The first worker: without one vsockd would not have started. */
	serve_spawner();
	all_behave();
}

static void hang_up(void)
{
	for (size_t i = 0; i < N_VMS; i++)
		close_socket(&f.frontends[i]);
	for (size_t i = 0; i < CLIENTS; i++)
		close_socket(&f.clients[i]);
	for (size_t i = 0; i < PROGRAMS; i++)
		close_socket(&f.programs[i]);
	f.is_spawner_bad = false;
	for (int i = 0; i < 3; i++) {
		/* Workers that leave are stopped, those that failed are followed by others. */
		f.now += 40000;
		all_behave();
	}
}

static uint64_t ask_frontend(int frontend, uint32_t request, uint32_t flags,
			     const uint64_t *payload)
{
	struct {
		struct vhost_user_header header;
		uint64_t value;
	} __attribute__((packed)) message = {
		{request, VHOST_USER_VERSION | flags, payload ? sizeof(uint64_t) : 0},
		payload ? *payload : 0,
	};
	size_t len = sizeof(message.header) + message.header.size;

	CLAIM(send(frontend, &message, len, MSG_NOSIGNAL) == (ssize_t)len);
	run(2);
	all_behave();
	if (!flags && payload)
		return 0;
	CLAIM(recv(frontend, &message, sizeof(message), MSG_DONTWAIT) == sizeof(message));
	CLAIM(message.header.request == request && message.header.size == sizeof(uint64_t));
	return message.value;
}

/* Whoever comes next is served, with a worker of its own. */
static void expect_service(void)
{
	const uint64_t protocol = VHOST_USER_PROTOCOL_F_REPLY_ACK;
	const uint64_t features = SESSION_FEATURES;

	for (size_t i = 0; i < N_VMS; i++) {
		int frontend = connect_to(f.vm_sockets[i].all[SOCKET_FRONTEND].fd, SOCK_STREAM);

		CLAIM(frontend >= 0);
		run(2);
		CLAIM(ask_frontend(frontend, VHOST_USER_GET_FEATURES, 0, NULL) == SESSION_FEATURES);
		ask_frontend(frontend, VHOST_USER_SET_PROTOCOL_FEATURES, 0, &protocol);
		CLAIM(ask_frontend(frontend, VHOST_USER_SET_FEATURES, VHOST_USER_NEED_REPLY,
				   &features) == 0);
		CLAIM(f.front.devices[i].worker && sync_is_idle(&f.front.devices[i]));
		close(frontend);
		run(2);
	}
}

static void end(void)
{
	size_t len = f.front.n_connects_max * sizeof(uint64_t);

	for (size_t i = 0; i < f.front.n_devices; i++) {
		void *endpoints = f.front.devices[i].endpoints.all;

		device_end(&f.front.devices[i]);
		close(f.front.devices[i].ring_journal);
		free(endpoints);
	}
	for (size_t i = 0; i < f.front.n_workers_max; i++) {
		close_socket(&f.front.workers[i].channel);
		close_socket(&f.front.workers[i].buffer);
	}
	for (size_t i = 0; i < WORKERS; i++)
		close_socket(&f.workers[i].channel);
	free(f.front.devices);
	free(f.front.workers);
	free(f.front.owed);
	free(f.front.control);
	munmap(f.front.connects, len);
	munmap(f.front.retries, len);
	munmap(f.front.retry_times, len);
	close(f.front.epoll);
	close(f.front.spawner);
	close(f.spawner);
	close(f.sockets.control.fd);
}

static void step(void)
{
	uint8_t choice = input_u8(f.input), detail = input_u8(f.input);

	switch (choice % 16) {
	case 0:
	case 1:
	case 2:
	case 3:
	case 4:
		let_a_frontend_act(detail);
		break;
	case 5:
	case 6:
	case 7:
	case 8:
		let_a_worker_act(detail);
		break;
	case 9:
		let_a_program_act(detail);
		break;
	case 10:
	case 11:
		let_an_operator_act(detail);
		break;
	case 12:
		f.now += (uint64_t)detail * detail;
		break;
	case 13:
		f.is_spawner_bad = detail & 1;
		break;
	default:
		all_behave();
	}
	run(2);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	log_open(-1);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct input input = {bytes, len};
	size_t n_fds = fuzz_count_fds();

	begin(&input);
	for (int i = 0; i < STEPS_AT_MOST && input.len > 0; i++)
		step();
	hang_up();
	expect_service();
	end();
	CLAIM(fuzz_count_fds() == n_fds);
	return 0;
}
