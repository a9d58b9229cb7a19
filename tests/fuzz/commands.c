/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A worker whose front says anything that the table of messages has, in any order and
 * with any numbers and fds. The front is not an enemy of the worker's; but the worker is
 * to end, or to obey, and never to do something else: each command is answered once,
 * and no fd is lost. Between commands a guest puts packets into its rings.
 *
 * As the front does, the input counts sockets: there are never more than were promised.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fuzz/ipc.h"
#include "tests/unit/device_rig.h"

#define COMMANDS_MAX  120
#define N_CONNECTIONS 16

static struct {
	uint32_t n_sockets; /* that were handed over, and not closed */
	bool is_owed;	    /* the answer to the last command */
	enum message_state state;
} f;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	return setenv("CMOCKA_TEST_ABORT", "1", 1);
}

/* The kind that belongs to a message, or any other; -1 where none may come, or was chosen. */
static int choose_fd(struct input *input, const Vsockd__Envelope *envelope)
{
	const struct message_rule *rule = message_rule(envelope->body_case);
	uint8_t choice = input_u8(input);

	if (rule->fds_max == 0)
		return choice == 0xff ? fuzz_open(FUZZ_FD_EVENT) : -1;
	if (choice == 0xff)
		return -1;
	if (choice > 0xf0)
		return fuzz_open_any(input);
	switch (envelope->body_case) {
	case VSOCKD__ENVELOPE__BODY_MEMORY_ADD:
	case VSOCKD__ENVELOPE__BODY_LOG_SET:
	case VSOCKD__ENVELOPE__BODY_RING_JOURNAL:
	case VSOCKD__ENVELOPE__BODY_HANDOVER_POOL:
		return fuzz_open(FUZZ_FD_MEMORY);
	case VSOCKD__ENVELOPE__BODY_CAPTURE:
	case VSOCKD__ENVELOPE__BODY_STATE_SAVE:
		return fuzz_open(FUZZ_FD_PIPE_WRITE);
	case VSOCKD__ENVELOPE__BODY_STATE_LOAD:
		return fuzz_open(FUZZ_FD_PIPE_READ);
	case VSOCKD__ENVELOPE__BODY_HANDOVER_SOCKET:
		return fuzz_open(FUZZ_FD_UNIX);
	case VSOCKD__ENVELOPE__BODY_ACCEPTED:
	case VSOCKD__ENVELOPE__BODY_CONNECTED:
		return choice & 1 || envelope->body_case == VSOCKD__ENVELOPE__BODY_ACCEPTED
			       ? fuzz_open(FUZZ_FD_UNIX)
			       : -1;
	default:
		return choice & 1 ? fuzz_open(FUZZ_FD_EVENT) : -1;
	}
}

static void hear(void)
{
	struct channel_packet packet;
	const char *reason = "";

	while (channel_receive(rig.front, &packet) == 0) {
		const Vsockd__Envelope *envelope;

		envelope = message_decode(&packet, MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, &reason);
		if (!envelope)
			envelope =
				message_decode(&packet, MESSAGE_TO_FRONT, MESSAGE_FROZEN, &reason);
		CLAIM(envelope && packet.fd < 0);
		if (envelope->body_case == VSOCKD__ENVELOPE__BODY_DONE) {
			CLAIM(f.is_owed && envelope->done->sequence == rig.sequence);
			CLAIM(envelope->done->status <= 0);
			f.is_owed = false;
		}
		if (envelope->body_case == VSOCKD__ENVELOPE__BODY_CLOSED && f.n_sockets > 0)
			f.n_sockets--;
	}
}

/* As rig_run(), with another ear: true while the worker goes on. */
static bool run(void)
{
	struct epoll_event events[16];
	bool goes_on = true, has_more = true;

	for (int i = 0; i < 1000 && goes_on; i++) {
		int n = epoll_wait(rig.epoll, events, 16, 0);

		if (n <= 0 && !has_more)
			return true;
		for (int k = 0; k < n; k++)
			goes_on &= device_note_event(&rig.device, events[k].data.u64,
						     events[k].events);
		has_more = device_pump(&rig.device);
		goes_on &= control_flush(&rig.device);
		hear();
	}
	/* What a front hands over may be ready for ever; then there is more each time. */
	return goes_on;
}

static bool may_send(const Vsockd__Envelope *envelope)
{
	switch (envelope->body_case) {
	case VSOCKD__ENVELOPE__BODY_ACCEPTED:
	case VSOCKD__ENVELOPE__BODY_CONNECTED:
	case VSOCKD__ENVELOPE__BODY_LOST:
		return f.n_sockets < N_CONNECTIONS;
	default:
		return true;
	}
}

static bool command(struct input *input)
{
	const struct ipc_hints hints = {.sequence = rig.sequence + 1};
	const Vsockd__Envelope *envelope = ipc_make(input, MESSAGE_TO_WORKER, &hints);
	struct channel_packet packet;
	int fd;

	if (!may_send(envelope))
		return true;
	fd = choose_fd(input, envelope);
	f.is_owed = message_rule(envelope->body_case)->is_command;
	if (f.is_owed)
		rig.sequence = envelope->sequence;
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_ACCEPTED ||
	    envelope->body_case == VSOCKD__ENVELOPE__BODY_CONNECTED ||
	    envelope->body_case == VSOCKD__ENVELOPE__BODY_LOST)
		f.n_sockets++;
	message_encode(envelope, fd, &packet);
	CLAIM(channel_send(rig.front, &packet) == 0);
	if (fd >= 0)
		close(fd);
	if (!run())
		return false;
	CLAIM(!f.is_owed);
	return true;
}

/* A packet of the guest's, for some connection or none; buffers; time. */
static bool let_the_guest_act(struct input *input, uint8_t choice)
{
	struct packet_header header = {
		.src_cid = RIG_CID,
		.dst_cid = PACKET_HOST_CID,
		.src_port = choice >> 6,
		.dst_port = 80,
		.type = PACKET_TYPE_STREAM,
		.op = (uint16_t)(choice >> 2 & 7),
		.buf_alloc = 4096,
	};
	const struct rig_ring *ring = &rig.rings[choice & 1];

	if ((uint16_t)(ring->avail_idx - rig_used_index(choice & 1)) + 8 > ring->num)
		return true;
	if (choice & 1)
		rig_put(&header, NULL);
	else
		rig_offer(1 + (choice >> 6), 100);
	if (choice & 2)
		device_set_time(&rig.device, rig.device.now + input_u16(input));
	return run();
}

/* What a device may hold beyond what the rig ends. */
static void close_held(void)
{
	if (rig.device.state.fd >= 0)
		close(rig.device.state.fd);
	if (rig.device.discarded >= 0)
		close(rig.device.discarded);
	if (rig.device.capture.fd >= 0)
		close(rig.device.capture.fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	const struct rig_options options = {
		.n_connections = N_CONNECTIONS,
		.features = RIG_F_EVENT_IDX | RIG_F_INDIRECT,
	};
	struct input input = {bytes, len};
	size_t n_fds = fuzz_count_fds();
	struct fuzz_fds fds;
	bool goes_on = true;

	fuzz_note_fds(&fds);
	memset(&f, 0, sizeof(f));
	rig_start(&options);
	for (int i = 0; i < COMMANDS_MAX && input.len > 0 && goes_on; i++) {
		uint8_t choice = input_u8(&input);

		goes_on = choice & 0x80 ? let_the_guest_act(&input, choice << 1 & 0xff)
					: command(&input);
	}
	close_held();
	rig_end();
	/* A worker that does not believe its front ends, and its fds with it. */
	if (!goes_on)
		fuzz_close_later_fds(&fds);
	CLAIM(fuzz_count_fds() == n_fds);
	return 0;
}
