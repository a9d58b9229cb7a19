/* SPDX-License-Identifier: Apache-2.0 */

/*
 *	whole [--seconds N] [--seed N]
 *
 * The built programs under a guest, a VMM and host programs that do something else in
 * each round, drawn from the round's seed: honest ones, of which every promise has to be
 * kept, and others, which may only harm themselves. A second VM exchanges bytes all the
 * while. After each round the next front-end is served as if nothing had been, no process
 * has died but a worker whose memory was taken away, and the front holds no fd too many.
 *
 * A round that failed is the first one of --seed with the number that was printed; how
 * the processes' turns fall in time is not in it. $VSOCKD and $VSOCKD_WORKER are run.
 */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sysexits.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"
#include "tests/hostile/rig.h"

#define STEPS_MAX     150
#define LOG_SHOWN     4096
#define HOSTS	      16
#define CONNECTIONS   12
#define PORT	      5000 /* somebody listens there, on both sides */
#define NEIGHBOUR_CID 3
#define MIB	      (UINT64_C(1) << 20)
#define MEMORY_SIZE   (8 * MIB)

static struct rig rig;

static struct {
	uint64_t random;
	int seconds;
	uint64_t first_seed;
	struct guest guest;
	bool has_guest, has_passed;
	bool is_honest, is_truncated;
	bool is_resting; /* its rings are stopped */
	struct guest_connection *connections[CONNECTIONS];
	int listener;
	int hosts[HOSTS]; /* -1: none */
} f;

static uint32_t draw(uint32_t n)
{
	f.random = f.random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(f.random >> 33) % n;
}

static uint64_t draw_any(void)
{
	return (uint64_t)draw(UINT32_MAX) << 32 | draw(UINT32_MAX);
}

/* ---- the guest's life ---- */

static void forget_connections(void)
{
	memset(f.connections, 0, sizeof(f.connections));
}

static void end_guest(void)
{
	if (!f.has_guest)
		return;
	if (f.is_honest && *guest_violations(&f.guest))
		fail_msg("%s", guest_violations(&f.guest));
	guest_end(&f.guest);
	f.has_guest = false;
	f.is_resting = false;
	forget_connections();
}

/* What an honest guest is never refused. */
static void take_result(int result)
{
	if (result >= 0 || result == -EAGAIN)
		return;
	if (f.is_honest)
		fail_msg("an honest guest is refused: %s: %s %s", strerror(-result),
			 vhost_error(&f.guest.vhost), guest_violations(&f.guest));
	end_guest();
}

static struct guest_layout draw_layout(void)
{
	struct guest_layout layout = {.is_indirect = draw(2)};

	if (draw(2))
		layout.cuts[layout.n_cuts++] = 1 + draw(60);
	if (draw(4) == 0)
		layout.piece_len = 100 + draw(2000);
	return layout;
}

static void start_guest(void)
{
	const struct memory_layout region = {
		.guest_address = MIB,
		.size = MEMORY_SIZE,
		.is_unsealed = f.is_truncated,
	};
	struct guest_options options = {
		.socket = rig.socket,
		.style = (enum guest_style)draw(3),
		.cid = RIG_CID,
		.features = BIT64(VIRTIO_VERSION_1),
		.injects_kicks = draw(2),
		.queue_size = (uint16_t)(16 << draw(4)),
		.rx_buffer_size = draw(2) ? 4096 : 100 + draw(8000),
		.buf_alloc = draw(2) ? 0 : 2000 + draw(100000),
		.n_tx_buffers = 8,
		.rx_layout = draw_layout(),
		.tx_layout = draw_layout(),
		.regions = &region,
		.n_regions = 1,
		.timeout = RIG_LIMIT,
	};

	static const unsigned int bits[] = {VIRTIO_RING_PACKED, VIRTIO_IN_ORDER, VIRTIO_INDIRECT,
					    VIRTIO_EVENT_IDX, VIRTIO_SEQPACKET};
	int result;

	/* That VMM starts rings behind what was posted before. */
	options.is_prefilled = options.style != GUEST_LIKE_CLOUD_HYPERVISOR && draw(2);
	for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++)
		options.features |= draw(2) ? BIT64(bits[i]) : 0;
	result = guest_start(&f.guest, &options);
	if (result < 0)
		fail_msg("no guest starts: %s: %s %s", strerror(-result),
			 vhost_error(&f.guest.vhost), guest_violations(&f.guest));
	f.has_guest = true;
	take_result(guest_listen(&f.guest, PORT));
}

static int disturb_guest(void)
{
	int result;

	if (f.is_resting)
		return guest_resume(&f.guest);
	switch (draw(4)) {
	case 0:
		result = guest_enable(&f.guest, false);
		return result < 0 ? result : guest_enable(&f.guest, true);
	case 1:
		/*
		 * Without that message a device learns of a new driver as its rings start,
		 * one by one, and may have answered the one before in the first of them.
		 */
		if (!vhost_has(&f.guest.vhost, VHOST_PROTOCOL_RESET_DEVICE))
			return guest_stop(&f.guest);
		result = guest_reset(&f.guest);
		forget_connections();
		return result < 0 ? result : guest_resume(&f.guest);
	default:
		return guest_stop(&f.guest);
	}
}

static void pause_guest(void)
{
	int result = disturb_guest();

	f.is_resting = !f.guest.is_started;
	take_result(result);
}

/* ---- what an honest guest does ---- */

static struct guest_connection **draw_connection(void)
{
	return &f.connections[draw(CONNECTIONS)];
}

static void connect_guest(void)
{
	struct guest_connection **connection = draw_connection();
	uint64_t cid = draw(8) ? PACKET_HOST_CID : NEIGHBOUR_CID;

	if (!*connection)
		*connection = guest_connect(&f.guest, cid, PORT + (draw(8) == 0));
}

static void use_connection(void)
{
	static uint8_t bytes[30000];
	struct guest_connection **place = draw_connection(), *connection = *place;

	if (!connection) {
		*place = guest_accept(&f.guest, PORT);
		return;
	}
	switch (draw(8)) {
	case 0:
		(void)!guest_shutdown(connection, draw(4));
		return;
	case 1:
		(void)!(draw(2) ? guest_close(connection) : guest_abort(connection));
		return;
	case 2:
		if (connection->state != GUEST_CLOSED)
			return;
		guest_forget(connection);
		*place = NULL;
		return;
	case 3:
	case 4:
		(void)!guest_receive(connection, bytes, 1 + draw(sizeof(bytes)));
		return;
	default:
		(void)!guest_send(connection, bytes, 1 + draw(sizeof(bytes)));
	}
}

/* ---- what another one does ---- */

static void send_odd_packet(void)
{
	struct packet packet = {
		.src_cid = draw(8) ? RIG_CID : draw_any(),
		.dst_cid = draw(8) ? PACKET_HOST_CID : draw(8),
		.src_port = draw(2) ? draw(8) : (uint32_t)draw_any(),
		.dst_port = draw(2) ? PORT : draw(8),
		.len = draw(4) ? 0 : (uint32_t)draw_any(),
		.type = draw(8) ? PACKET_STREAM : (uint16_t)draw(5),
		.op = (uint16_t)draw(10),
		.flags = draw(5),
		.buf_alloc = (uint32_t)draw_any() >> draw(32),
		.fwd_cnt = draw(2) ? 0 : (uint32_t)draw_any(),
	};
	const struct guest_connection *connection = *draw_connection();
	struct guest_layout layout = draw_layout();

	if (connection && draw(2)) {
		packet.src_port = connection->port;
		packet.dst_port = connection->peer_port;
	}
	(void)!guest_send_packet(&f.guest, &packet, NULL, draw(500), &layout);
}

/* Into the tables of a ring, or anywhere. */
static void scribble(void)
{
	struct ring *ring = &f.guest.rings[draw((uint32_t)f.guest.n_rings)];
	uint8_t *places[] = {
		(uint8_t *)(ring->descriptors + draw(ring->size)),
		(uint8_t *)(ring->avail + draw(ring->size + 3u)),
		(uint8_t *)(ring->used + draw(4u * ring->size + 3u)),
		memory_at(&f.guest.memory, MIB + 8 * draw(MEMORY_SIZE / 8)),
	};
	uint64_t value = draw(2) ? draw_any() : draw(70000);

	memcpy(places[draw(4)], &value, draw(2) ? 2 : 8);
	switch (draw(4)) {
	case 0:
		ring_set_avail_idx(ring, (uint16_t)draw(65536));
		break;
	case 1:
		ring_offer_raw(ring, (uint16_t)draw(2u * ring->size));
		break;
	}
	ring_kick(ring);
}

static void send_odd_message(void)
{
	struct vhost *vhost = &f.guest.vhost;
	uint32_t message[5] = {draw(45), VHOST_FLAG_VERSION | (draw(2) ? VHOST_FLAG_NEED_REPLY : 0),
			       8, draw(4), draw(300)};
	int fd = f.guest.rings[0].call, n_fds = draw(4) == 0;

	switch (draw(6)) {
	case 0:
		(void)!vhost_set_ring(vhost, VHOST_SET_VRING_ENABLE, draw(3), draw(2));
		return;
	case 1:
		(void)!vhost_set_ring(vhost, VHOST_SET_VRING_BASE, draw(3), draw(65536));
		return;
	case 2:
		(void)!vhost_order(vhost, draw(2) ? VHOST_RESET_DEVICE : VHOST_RESET_OWNER);
		return;
	case 3: {
		uint32_t base;

		(void)!vhost_get_ring_base(vhost, draw(3), &base);
		return;
	}
	case 4:
		message[2] = draw(20);
		/* fall through */
	default:
		(void)!vhost_send_raw(vhost, message, sizeof(message), &fd, (size_t)n_fds);
	}
}

static void take_memory_away(void)
{
	assert_int_equal(ftruncate(f.guest.memory.fds[0], 0), 0);
	for (size_t i = 0; i < f.guest.n_rings; i++)
		ring_kick(&f.guest.rings[i]);
	/* Nothing of it may be looked at from here on, here neither. */
	close(f.guest.vhost.fd);
	f.guest.vhost.fd = -1;
	guest_end(&f.guest);
	f.has_guest = false;
	f.is_resting = false;
	forget_connections();
}

/* ---- host programs ---- */

static int *draw_host(void)
{
	return &f.hosts[draw(HOSTS)];
}

static void host_comes(void)
{
	static const char *const lines[] = {"CONNECT 5000\n", "CONNECT 5000\nearly", "connect 7\n",
					    "CONNECT ",	      "GET / HTTP/1.1\r\n",  ""};
	const char *line = lines[draw(6)];
	int *host = draw_host();

	if (*host >= 0)
		return;
	*host = rig_connect(rig.uds_path);
	(void)!send(*host, line, strlen(line), MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void host_accepts(void)
{
	int *host = draw_host();

	if (*host < 0)
		*host = accept4(f.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

static void host_leaves(int *host)
{
	if (*host >= 0)
		close(*host);
	*host = -1;
}

static void host_acts(void)
{
	static uint8_t bytes[60000];
	int *host = draw_host();

	if (*host < 0)
		return;
	switch (draw(8)) {
	case 0:
		host_leaves(host);
		return;
	case 1:
		shutdown(*host, draw(2) ? SHUT_WR : SHUT_RD);
		return;
	case 2:
	case 3:
	case 4:
		(void)!send(*host, bytes, draw(sizeof(bytes)), MSG_NOSIGNAL | MSG_DONTWAIT);
		return;
	default:
		(void)!recv(*host, bytes, draw(sizeof(bytes)), MSG_DONTWAIT);
	}
}

/* ---- rounds ---- */

static void do_something_odd(void)
{
	switch (draw(8)) {
	case 0:
		send_odd_message();
		return;
	case 1:
	case 2:
		scribble();
		return;
	default:
		send_odd_packet();
	}
}

static void step(void)
{
	uint32_t what = draw(32);

	if (what < 6)
		host_acts();
	else if (what < 9)
		host_comes();
	else if (what < 11)
		host_accepts();
	if (!f.has_guest) {
		if (!f.is_truncated || draw(8) == 0)
			start_guest();
		return;
	}
	if (!f.is_honest && draw(3) == 0) {
		do_something_odd();
	} else if (what == 31) {
		pause_guest();
		return;
	} else if (f.is_resting) {
		return;
	} else if (what < 16) {
		connect_guest();
	} else {
		use_connection();
	}
	if (f.is_truncated && draw(20) == 0)
		take_memory_away();
	else
		take_result(guest_poll(&f.guest, (int)draw(2)));
	if (f.has_guest && draw(40) == 0)
		end_guest();
}

static void check(uint64_t seed)
{
	char what[64];

	snprintf(what, sizeof(what), "seed %llu", (unsigned long long)seed);
	rig_check_service(&rig, what);
	rig_check_rest(&rig, what);
	rig_check_neighbour(&rig, 20, what);
	assert_int_equal(rig_count_log(&rig, "is not believed"), 0);
	assert_int_equal(rig_count_log(&rig, "does not answer"), 0);
	assert_int_equal(rig_count_log(&rig, "ended with exit code"), 0);
	assert_int_equal(rig_count_log(&rig, "ended by signal"),
			 rig_count_log(&rig, "guest memory was truncated"));
	if (!f.is_truncated)
		assert_int_equal(rig_count_log(&rig, "ended by signal"), 0);
}

static void run_round(uint64_t seed)
{
	uint32_t n_steps;

	f.random = seed * UINT64_C(0x9e3779b97f4a7c15);
	draw(1);
	f.is_honest = draw(3) == 0;
	f.is_truncated = !f.is_honest && draw(6) == 0;
#ifdef RIG_IS_SANITIZED
	f.is_truncated = false; /* what is meant looks like a mistake there */
#endif
	n_steps = 20 + draw(STEPS_MAX);
	rig_mark(&rig);
	for (uint32_t i = 0; i < n_steps; i++)
		step();
	end_guest();
	for (size_t i = 0; i < HOSTS; i++)
		host_leaves(&f.hosts[i]);
	check(seed);
}

static void test_no_round_reaches_beyond_itself(void **state)
{
	int64_t deadline = deadline_in(f.seconds * 1000);
	uint64_t seed = f.first_seed;

	(void)state;
	do {
		printf("seed %llu\n", (unsigned long long)seed);
		fflush(stdout);
		run_round(seed++);
	} while (deadline_left(deadline) > 0);
	f.has_passed = true;
	printf("%llu rounds\n", (unsigned long long)(seed - f.first_seed));
}

static int set_up(void **state)
{
	(void)state;
	rig_start(&rig, "max-connections=8,max-handshakes=4,tx-buffer-size=16384");
	f.listener = host_listen(rig.uds_path, PORT);
	assert_true(f.listener >= 0);
	for (size_t i = 0; i < HOSTS; i++)
		f.hosts[i] = -1;
	return 0;
}

/* What vsockd said last. */
static void show_log(void)
{
	FILE *log = fopen(daemon_path(&rig.daemon, "log"), "re");
	int c;

	if (!log)
		return;
	/* All of it, when there is less. */
	if (fseek(log, -LOG_SHOWN, SEEK_END) < 0)
		rewind(log);
	while ((c = getc(log)) != EOF)
		putc(c, stderr);
	fclose(log);
}

static int tear_down(void **state)
{
	(void)state;
	if (!f.has_passed)
		show_log();
	close(f.listener);
	rig_stop(&rig);
	return 0;
}

static bool parse(int argc, char **argv)
{
	f.seconds = 60;
	f.first_seed = (uint64_t)getpid() << 20;
	for (int i = 1; i + 1 < argc; i += 2) {
		if (strcmp(argv[i], "--seconds") == 0)
			f.seconds = atoi(argv[i + 1]);
		else if (strcmp(argv[i], "--seed") == 0)
			f.first_seed = strtoull(argv[i + 1], NULL, 0);
		else
			return false;
	}
	return argc % 2 == 1;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_no_round_reaches_beyond_itself, set_up,
						tear_down),
	};

	if (!parse(argc, argv)) {
		fprintf(stderr, "usage: whole [--seconds N] [--seed N]\n");
		return EX_USAGE;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
