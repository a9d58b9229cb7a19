/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A device state out of a pipe that a front-end filled, in pieces, read by a worker's
 * device. What the worker then tells the front has to be what the bytes say, and bytes
 * that are good have to be the only ones that say so.
 *
 * The first byte tells whether the checksum is put right, so that what lies behind that
 * check is reached, and how long the pieces are.
 */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fuzz/fuzz.h"
#include "tests/unit/device_rig.h"
#include "worker/transfer.h"

/* Less than the rig's device has room for, so it reads all of it. */
#define STATE_MAX 1024

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	return setenv("CMOCKA_TEST_ABORT", "1", 1);
}

/* A state that is good is the one that its own contents make. */
static void check_form(const uint8_t *bytes, size_t len, const struct transfer_header *header)
{
	uint8_t again[STATE_MAX];

	if (len == 0) {
		CLAIM(header->flags == STATE_FLAG_UNKNOWN && header->n_connections == 0);
		return;
	}
	CLAIM(transfer_len(header->n_connections) == len);
	CLAIM(!(header->flags & STATE_FLAG_UNKNOWN));
	transfer_put_header(again, header);
	for (uint32_t i = 0; i < header->n_connections; i++) {
		struct transfer_connection connection;

		transfer_get_connection(bytes, i, &connection);
		transfer_put_connection(again, i, &connection);
	}
	transfer_put_checksum(again, header->n_connections);
	CLAIM(memcmp(bytes, again, len) == 0);
}

static void post(Vsockd__Envelope__BodyCase type, int fd)
{
	Vsockd__StateLoad load = VSOCKD__STATE_LOAD__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	envelope.body_case = type;
	envelope.state_load = &load;
	CLAIM(rig_command(&envelope, fd) == 0);
}

static enum state_reason load(const uint8_t *bytes, size_t len, size_t piece_len)
{
	struct rig_told done;
	int ends[2];

	if (pipe(ends) < 0)
		abort();
	post(VSOCKD__ENVELOPE__BODY_STATE_LOAD, ends[0]);
	close(ends[0]);
	for (size_t done_len = 0; done_len < len;) {
		size_t n = len - done_len < piece_len ? len - done_len : piece_len;

		if (write(ends[1], bytes + done_len, n) < 0) {
			CLAIM(errno == EPIPE); /* it has seen enough */
			break;
		}
		rig_run();
		done_len += n;
	}
	close(ends[1]);
	rig_run();
	CLAIM(rig_take_told(VSOCKD__ENVELOPE__BODY_STATE_DONE, &done));
	CLAIM(done.values[0] == (done.values[1] == STATE_GOOD));
	return (enum state_reason)done.values[1];
}

static void check_told(const uint8_t *bytes, const struct transfer_header *header)
{
	struct rig_told told;

	for (uint32_t i = 0; i < header->n_connections; i++) {
		struct transfer_connection connection;

		transfer_get_connection(bytes, i, &connection);
		CLAIM(rig_take_told(VSOCKD__ENVELOPE__BODY_STATE_CONNECTION, &told));
		CLAIM(told.values[0] == connection.guest_port);
		CLAIM(told.values[1] == connection.host_port);
		CLAIM(told.values[2] == connection.type);
	}
	CLAIM(rig_take_told(VSOCKD__ENVELOPE__BODY_STATE_INFO, &told));
	CLAIM(told.values[0] == header->guest_cid);
	CLAIM(told.values[1] == header->features);
	CLAIM(told.values[2] == header->flags);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	const struct rig_options options = {.is_idle = true};
	struct input input = {bytes, len};
	uint8_t choice = input_u8(&input);
	struct transfer_header header;
	uint8_t state[STATE_MAX];
	enum state_reason reason, told;
	size_t n_fds;

	len = input.len;
	if (len > sizeof(state))
		return -1;
	input_copy(&input, state, len);
	if ((choice & 1) && len >= transfer_len(0))
		transfer_put_checksum(
			state, (uint32_t)((len - transfer_len(0)) / TRANSFER_CONNECTION_LEN));
	reason = transfer_check(state, len, &header);
	if (reason == STATE_GOOD)
		check_form(state, len, &header);

	n_fds = fuzz_count_fds();
	rig_start(&options);
	told = load(state, len, 1 + (choice >> 1) * (size_t)8);
	CLAIM(rig.is_attached);
	CLAIM(told == reason);
	if (told == STATE_GOOD)
		check_told(state, &header);
	CLAIM(rig.n_told == 0);
	rig_end();
	CLAIM(fuzz_count_fds() == n_fds);
	return 0;
}
