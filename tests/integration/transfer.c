/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/integration/transfer.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "tests/frontend/stopwatch.h"

static void check_bytes(void *context, const uint8_t *bytes, size_t len)
{
	struct transfer *transfer = context;

	if (transfer->n_to_guest + len > transfer->len ||
	    !pattern_is(bytes, len, 2, transfer->n_to_guest))
		transfer->is_wrong = true;
	transfer->n_to_guest += len;
}

static void check_host(struct transfer *transfer)
{
	const struct host_stream *stream = &transfer->stream;
	size_t len = stream->n_received - transfer->n_host_looked;

	if (stream->n_received > transfer->len ||
	    !pattern_is(stream->received + transfer->n_host_looked, len, 1,
			transfer->n_host_looked))
		transfer->is_wrong = true;
	transfer->n_host_looked = stream->n_received;
}

void transfer_start(struct transfer *transfer, struct setup *setup, size_t vm, uint32_t port,
		    size_t len)
{
	*transfer = (struct transfer){.setup = setup, .vm = vm, .len = len};
	for (size_t i = 0; i < 2; i++) {
		transfer->bytes[i] = malloc(len);
		assert_non_null(transfer->bytes[i]);
		pattern_fill(transfer->bytes[i], len, i + 1, 0);
	}
	transfer->connection = setup_connect(setup, vm, port, &transfer->stream);
	transfer->connection->sink = check_bytes;
	transfer->connection->sink_context = transfer;
	host_stream_send(&transfer->stream, transfer->bytes[1], len, false);
}

static void send_some(struct transfer *transfer)
{
	ssize_t n = guest_send(transfer->connection, transfer->bytes[0] + transfer->n_to_host,
			       transfer->len - transfer->n_to_host);

	if (n > 0)
		transfer->n_to_host += (size_t)n;
}

void transfer_step(struct transfer *transfer, int milliseconds)
{
	struct guest *guest = transfer->connection->guest;
	int n;

	if (transfer->connection->state == GUEST_ESTABLISHED)
		send_some(transfer);
	n = guest_poll(guest, milliseconds);
	if (n < 0)
		fail_msg("guest_poll: %d %s", n, guest_violations(guest));
	check_host(transfer);
	if (transfer->is_wrong)
		fail_msg("wrong bytes: guest got %zu, host %zu of %zu", transfer->n_to_guest,
			 transfer->stream.n_received, transfer->len);
}

void transfer_run_to(struct transfer *transfer, size_t n)
{
	int64_t deadline = deadline_in(SETUP_LIMIT);
	size_t n_before = 0;

	while (transfer->n_to_guest < n || transfer->stream.n_received < n) {
		size_t n_now = transfer->n_to_guest + transfer->stream.n_received;

		if (n_now != n_before)
			deadline = deadline_in(SETUP_LIMIT);
		n_before = n_now;
		if (deadline_left(deadline) == 0 ||
		    transfer->connection->state != GUEST_ESTABLISHED || transfer->stream.is_ended ||
		    transfer->stream.error)
			fail_msg("stuck: guest got %zu, host %zu of %zu; guest state %d, host %s",
				 transfer->n_to_guest, transfer->stream.n_received, n,
				 transfer->connection->state,
				 transfer->stream.is_ended ? "ended" : "open");
		transfer_step(transfer, 10);
	}
}

static void free_bytes(struct transfer *transfer)
{
	free(transfer->bytes[0]);
	free(transfer->bytes[1]);
}

static void end(struct transfer *transfer)
{
	setup_end_stream(transfer->setup, transfer->vm, &transfer->stream);
	free_bytes(transfer);
}

void transfer_abandon(struct transfer *transfer)
{
	host_stream_end(&transfer->stream);
	free_bytes(transfer);
}

void transfer_finish(struct transfer *transfer)
{
	transfer_run_to(transfer, transfer->len);
	assert_int_equal(guest_finish(transfer->connection, SETUP_LIMIT), 0);
	end(transfer);
}

void transfer_expect_loss(struct transfer *transfer, int milliseconds)
{
	const struct host_stream *stream = &transfer->stream;
	const struct daemon *daemon = &transfer->setup->daemon;
	int64_t deadline = deadline_in(SETUP_LIMIT);
	struct stopwatch watch;

	stopwatch_start_daemon(&watch, daemon);
	while (transfer->connection->state != GUEST_CLOSED ||
	       (!stream->is_ended && !stream->error)) {
		if (deadline_left(deadline) == 0)
			fail_msg("not lost: guest state %d, host %s", transfer->connection->state,
				 stream->is_ended ? "ended" : "open");
		transfer_step(transfer, deadline_left(deadline));
	}
	assert_in_range(stopwatch_spent_daemon(&watch, daemon), 0, milliseconds);
	assert_int_equal(transfer->connection->error, ECONNRESET);
	guest_forget(transfer->connection);
	end(transfer);
}

void transfer_all(struct setup *setup, size_t vm, uint32_t port, size_t len)
{
	struct transfer transfer;

	transfer_start(&transfer, setup, vm, port, len);
	transfer_finish(&transfer);
}
