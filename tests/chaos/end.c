/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/chaos/end.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/frontend/host.h"

#define MAGIC	    UINT64_C(0x6e6f6365736f6863)
#define HEADER_LEN  sizeof(struct end_header)
#define PIECE	    (32u * 1024)
#define MESSAGE_MAX 6000
#define STREAM_MAX  (1u << 20)
#define PAUSE_MAX   400 /* ms */

/* Of one way: more than any window of a guest or of vsockd. */
#define ONE_WAY_MIN (400u << 10)

/* Well beyond a pause of the reader. A wait of the machine counts for nothing. */
#define CREDIT_LIMIT 5000

/* ---- who is who ---- */

static struct life *life_of(uint64_t id)
{
	return &shared->vms[id >> 48].lives[(id & UINT64_C(0xffffffffffff)) % LIVES];
}

static bool is_aborted(uint64_t id)
{
	const struct life *life = life_of(id);

	return life->id == id && life->is_aborted;
}

static uint64_t new_life(size_t vm)
{
	uint64_t id = (uint64_t)vm << 48 | ++shared->vms[vm].n_opened;
	struct life *life = life_of(id);

	life->is_aborted = false;
	life->id = id;
	return id;
}

static bool is_shaken(size_t vm, int64_t since)
{
	return shared->vms[vm].last_fault > since;
}

/* May somebody have reset it? */
static bool is_excused(const struct end *end)
{
	int64_t since = end->opened_at - AFTERMATH;

	if (is_shaken(end->vm, since) || is_shaken(end->peer_vm, since) || is_aborted(end->out.id))
		return true;
	if (end->has_in)
		return is_aborted(end->in.id);
	if (end->n_in == 0 && shared->last_slow > end->opened_at - RECOVERY)
		return true;
	/* Which one the other end is was not said yet. */
	return shared->vms[end->vm].last_abort > since ||
	       shared->vms[end->peer_vm].last_abort > since;
}

static void begin(struct end *end, enum end_state state, bool is_initiator)
{
	end->state = state;
	end->is_initiator = is_initiator;
	end->opened_at = end->moved_at = now_ms();
	shared->n_opened++;
	if (end->is_one_way)
		end->out.len = is_initiator ? ONE_WAY_MIN + draw(&end->dice, STREAM_MAX) : 1;
}

void end_init(struct end *end, size_t vm, size_t peer_vm, struct dice *dice, enum end_kind kind)
{
	*end = (struct end){
		.vm = vm,
		.peer_vm = peer_vm,
		.has_messages = kind == END_MESSAGES,
		.is_one_way = kind == END_ONE_WAY,
	};
	end->watch.fd = -1;
	end->out = (struct end_header){.magic = MAGIC, .id = new_life(vm)};
	end->dice = dice_of(dice->state, end->out.id);
	/* Mostly short, now and then long. */
	end->out.len = draw(dice, STREAM_MAX >> draw(dice, 12)) + 1;
	if (end->has_messages)
		end->out.n = 1 + draw(dice, 1u << draw(dice, 8));
	end->shuts_down = draw(dice, 2);
	end->packet_size = 0;
}

static void note_ready(struct watch *watch, short events)
{
	struct end *end = (struct end *)(void *)watch;

	end->can_read |= (events & (POLLIN | POLLHUP | POLLERR)) != 0;
	end->can_write |= (events & (POLLOUT | POLLHUP | POLLERR)) != 0;
}

void end_be_guest(struct end *end, struct guest_connection *connection, bool is_initiator)
{
	begin(end, is_initiator ? END_OPENING : END_OPEN, is_initiator);
	end->connection = connection;
}

void end_be_host(struct end *end, int fd, bool is_initiator)
{
	begin(end, is_initiator ? END_OPENING : END_OPEN, is_initiator);
	end->watch = (struct watch){.fd = fd, .events = POLLIN, .ready = note_ready};
	end->can_read = end->can_write = true;
}

void end_describe(const struct end *end, char *ret_text, size_t size)
{
	static const char *const states[] = {"opening", "open", "closing", "over"};
	const struct guest_connection *c = end->connection;
	size_t n;

	n = (size_t)snprintf(
		ret_text, size,
		"%s end %zu.%llu of VM %zu, %s, %s, %s: sent %llu of %llu, got %llu of %llu from "
		"%llx, open for %lld ms, still for %lld ms%s%s",
		c ? "guest" : "host", end->vm, (unsigned long long)(end->out.id & 0xffffffffffff),
		end->vm,
		end->has_messages ? "messages"
		: end->is_one_way ? "one way"
				  : "stream",
		end->is_initiator ? "asked" : "accepted", states[end->state],
		(unsigned long long)end->n_out,
		(unsigned long long)(end->has_messages ? end->out.n : end->out.len + HEADER_LEN),
		(unsigned long long)end->n_in,
		(unsigned long long)(!end->has_in	 ? 0
				     : end->has_messages ? end->in.n
							 : end->in.len + HEADER_LEN),
		(unsigned long long)end->in.id, (long long)(now_ms() - end->opened_at),
		(long long)(now_ms() - end->moved_at), end->has_shut_down ? ", shut down" : "",
		end->has_read_end ? ", read the end" : "");
	if (c && n < size)
		snprintf(ret_text + n, size - n,
			 "; peer %llu ports %u, %u state %d error %d shutdown %u peer %u tx_cnt %u "
			 "peer_fwd_cnt %u peer_buf_alloc %u rx_cnt %u fwd_cnt %u told %u of %u",
			 (unsigned long long)c->peer_cid, c->port, c->peer_port, (int)c->state,
			 c->error, c->shutdown, c->peer_shutdown, c->tx_cnt, c->peer_fwd_cnt,
			 c->peer_buf_alloc, c->rx_cnt, c->fwd_cnt, c->last_fwd_cnt, c->buf_alloc);
}

static _Noreturn void complain(const struct end *end, const char *what)
{
	char text[1024];

	end_describe(end, text, sizeof(text));
	vm_fail(end->vm, "%s: %s", what, text);
}

static void be_over(struct end *end)
{
	end->state = END_OVER;
	shared->n_ended++;
}

/* It ended too soon. */
static void be_reset(struct end *end, const char *how)
{
	if (!is_excused(end))
		complain(end, how);
	/* As a program that closes its socket, where only one direction is broken. */
	if (end->connection)
		guest_abort(end->connection);
	end->state = END_OVER;
	shared->n_reset++;
}

void end_condemn(struct end *end)
{
	life_of(end->out.id)->is_aborted = true;
	shared->vms[end->vm].last_abort = now_ms();
}

void end_abort(struct end *end)
{
	end_condemn(end);
	if (end->connection)
		guest_abort(end->connection);
	end->state = END_OVER;
	shared->n_reset++;
}

void end_free(struct end *end, bool has_guest)
{
	if (end->watch.fd >= 0)
		close(end->watch.fd);
	if (end->connection && has_guest)
		guest_forget(end->connection);
	end->watch.fd = -1;
	end->connection = NULL;
}

/* ---- what is sent ---- */

static bool is_sent(const struct end *end)
{
	return end->n_out == (end->has_messages ? end->out.n : end->out.len + HEADER_LEN);
}

static bool is_received(const struct end *end)
{
	return end->has_in &&
	       end->n_in == (end->has_messages ? end->in.n : end->in.len + HEADER_LEN);
}

/* The bytes of the stream that come next. */
static size_t fill_stream(const struct end *end, uint8_t *bytes, size_t size)
{
	uint64_t left = end->out.len + HEADER_LEN - end->n_out;

	if (end->n_out < HEADER_LEN) {
		memcpy(bytes, (const uint8_t *)&end->out + end->n_out, HEADER_LEN - end->n_out);
		return HEADER_LEN - (size_t)end->n_out;
	}
	if (size > left)
		size = (size_t)left;
	pattern_fill(bytes, size, end->out.id, end->n_out - HEADER_LEN);
	return size;
}

/* The same length whenever it is asked for. */
static size_t fill_message(const struct end *end, uint8_t *bytes)
{
	struct dice dice = dice_of(end->out.id, end->n_out);
	struct end_header header = end->out;

	header.index = (uint32_t)end->n_out;
	header.len = draw(&dice, MESSAGE_MAX >> draw(&dice, 10));
	memcpy(bytes, &header, HEADER_LEN);
	pattern_fill(bytes + HEADER_LEN, header.len, header.id + header.index, 0);
	return HEADER_LEN + header.len;
}

/* Can the guest send that many bytes at once? */
static bool has_room(const struct guest_connection *c, size_t len)
{
	uint32_t window = c->peer_buf_alloc < c->buf_alloc ? c->peer_buf_alloc : c->buf_alloc;
	uint32_t n_unread = c->tx_cnt - c->peer_fwd_cnt;
	const struct guest_layout *layout = &c->layout;
	size_t n_packets = len / c->packet_size + 1;
	size_t n_descriptors = 2 + layout->n_cuts;

	if (layout->piece_len)
		n_descriptors += c->packet_size / layout->piece_len + 1;
	return window >= n_unread && window - n_unread >= len && c->guest->n_pending == 0 &&
	       c->guest->n_free_slots >= n_packets &&
	       c->guest->rings[GUEST_TX].n_free >= n_packets * n_descriptors;
}

/* All of it or nothing: a message must not be left in the middle, and nobody waits here. */
static ssize_t send_guest_message(struct end *end, const uint8_t *bytes, size_t len)
{
	struct guest_connection *c = end->connection;
	int result;

	/* One that was reset says so, room or not. */
	if (c->state == GUEST_ESTABLISHED && !has_room(c, len))
		return -EAGAIN;
	result = guest_send_message(c, bytes, len, 0, 0);
	return result < 0 ? result : (ssize_t)len;
}

static ssize_t send_some(struct end *end, const uint8_t *bytes, size_t len)
{
	ssize_t n;

	if (end->connection && end->has_messages)
		return send_guest_message(end, bytes, len);
	if (end->connection)
		return guest_send(end->connection, bytes, len);
	n = send(end->watch.fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
	return n < 0 ? -errno : n;
}

/* Has something been sent? */
static bool send_next(struct end *end)
{
	uint8_t bytes[PIECE];
	size_t len;
	ssize_t n;

	if (is_sent(end) || !(end->connection || end->can_write))
		return false;
	len = end->has_messages ? fill_message(end, bytes) : fill_stream(end, bytes, PIECE);
	n = send_some(end, bytes, len);
	if (n == -EAGAIN) {
		end->can_write = false;
		return false;
	}
	if (n < 0) {
		be_reset(end, n == -ETIMEDOUT ? "a message was left in the middle" : "cannot send");
		return false;
	}
	end->n_out += end->has_messages ? 1 : (uint64_t)n;
	end->moved_at = now_ms();
	return true;
}

static void shut_down(struct end *end)
{
	if (end->has_shut_down || !end->shuts_down || !is_sent(end) || end->state != END_OPEN)
		return;
	end->has_shut_down = true;
	if (end->connection)
		guest_shutdown(end->connection, PACKET_SHUTDOWN_SEND);
	else
		shutdown(end->watch.fd, SHUT_WR);
}

/* ---- what is received ---- */

static void take_header(struct end *end, const uint8_t *bytes)
{
	memcpy(&end->in, bytes, HEADER_LEN);
	if (end->in.magic != MAGIC || end->in.id >> 48 >= VMS)
		complain(end, "the first bytes are wrong");
	end->has_in = true;
}

static void take_stream(struct end *end, const uint8_t *bytes, size_t len)
{
	shared->n_bytes += len;
	if (end->n_in < HEADER_LEN) {
		size_t n = HEADER_LEN - (size_t)end->n_in;

		if (n > len)
			n = len;
		memcpy(end->partial + end->n_in, bytes, n);
		end->n_in += n;
		bytes += n;
		len -= n;
		if (end->n_in == HEADER_LEN)
			take_header(end, end->partial);
	}
	if (len == 0)
		return;
	if (end->n_in - HEADER_LEN + len > end->in.len)
		complain(end, "more bytes came than were sent");
	if (!pattern_is(bytes, len, end->in.id, end->n_in - HEADER_LEN))
		complain(end, "bytes are wrong");
	end->n_in += len;
}

static void take_message(struct end *end, const uint8_t *bytes, size_t len)
{
	struct end_header before = end->in;

	shared->n_bytes += len;
	shared->n_messages++;
	if (len < HEADER_LEN)
		complain(end, "a message is cut");
	take_header(end, bytes);
	if (end->n_in > 0 && end->in.id != before.id)
		complain(end, "a message of another connection came");
	if (end->in.index != end->n_in)
		complain(end, "a message was lost, or came twice");
	if (end->in.len != len - HEADER_LEN)
		complain(end, "a message has another length");
	if (!pattern_is(bytes + HEADER_LEN, len - HEADER_LEN, end->in.id + end->in.index, 0))
		complain(end, "bytes of a message are wrong");
	end->n_in++;
}

/* The number of bytes, 0 at the end. */
static ssize_t receive_some(struct end *end, uint8_t *bytes, size_t size)
{
	ssize_t n;

	if (end->connection && end->has_messages) {
		n = guest_receive_message(end->connection, bytes, size);
		return n == -ENODATA ? 0 : n;
	}
	if (end->connection)
		return guest_receive(end->connection, bytes, size);
	n = recv(end->watch.fd, bytes, size, MSG_DONTWAIT);
	return n < 0 ? -errno : n;
}

/* "OK port\n", and not a byte of what comes behind it. */
static void take_answer(struct end *end)
{
	char line[32];
	ssize_t n = recv(end->watch.fd, line, sizeof(line) - 1, MSG_PEEK | MSG_DONTWAIT);
	const char *newline;

	if (n < 0 && errno == EAGAIN) {
		end->can_read = false;
		return;
	}
	if (n <= 0) {
		be_reset(end, "CONNECT is not answered");
		return;
	}
	line[n] = '\0';
	newline = strchr(line, '\n');
	if (!newline)
		return;
	if (strncmp(line, "OK ", 3) != 0)
		complain(end, "CONNECT is answered by something else");
	if (recv(end->watch.fd, line, (size_t)(newline + 1 - line), 0) <= 0)
		complain(end, "what was there is not");
	end->state = END_OPEN;
	end->moved_at = now_ms();
}

static bool receive_next(struct end *end)
{
	uint8_t bytes[PIECE];
	ssize_t n;

	if (end->has_read_end || !(end->connection || end->can_read) ||
	    end->paused_until > now_ms())
		return false;
	n = receive_some(end, bytes, sizeof(bytes));
	if (n == -EAGAIN) {
		end->can_read = false;
		return false;
	}
	if (n < 0) {
		be_reset(end, "reset");
		return false;
	}
	end->moved_at = now_ms();
	if (n == 0) {
		end->has_read_end = true;
		if (!is_received(end))
			be_reset(end, "ended before all was there");
		return false;
	}
	if (end->has_messages)
		take_message(end, bytes, (size_t)n);
	else
		take_stream(end, bytes, (size_t)n);
	if (draw(&end->dice, 100) == 0)
		end->paused_until = now_ms() + draw(&end->dice, PAUSE_MAX);
	return true;
}

/* ---- from beginning to end ---- */

static void take_guest_state(struct end *end)
{
	const struct guest_connection *c = end->connection;

	if (c->state == GUEST_ESTABLISHED && end->state == END_OPENING) {
		end->state = END_OPEN;
		end->moved_at = now_ms();
	}
	/* As Linux gives up, in 2 s: a REQUEST that its worker took along is answered by nobody. */
	if (end->state == END_OPENING && now_ms() - end->opened_at > RECOVERY && is_excused(end)) {
		be_reset(end, "not answered");
		return;
	}
	if (c->state != GUEST_CLOSED)
		return;
	if (end->state == END_OPENING)
		be_reset(end, "refused");
	else if (end->state == END_CLOSING)
		be_over(end);
}

/* Who asked closes when all is done; who accepted, when it sees that. */
static void close_when_done(struct end *end)
{
	if (end->state != END_OPEN || !is_sent(end) || !is_received(end) ||
	    !(end->is_initiator || end->has_read_end))
		return;
	if (!end->connection) {
		be_over(end);
		return;
	}
	guest_close(end->connection);
	end->state = END_CLOSING;
	end->moved_at = now_ms();
	take_guest_state(end);
}

static void choose_events(struct end *end)
{
	end->watch.events = 0;
	if (!end->can_read && !end->has_read_end && end->paused_until <= now_ms())
		end->watch.events |= POLLIN;
	if (!end->can_write && end->state == END_OPEN && !is_sent(end))
		end->watch.events |= POLLOUT;
}

void end_step(struct end *end)
{
	if (end->state == END_OVER)
		return;
	if (end->state == END_OPENING)
		note_wait(end->opened_at);
	if (end->connection)
		take_guest_state(end);
	else if (end->state == END_OPENING && end->can_read)
		take_answer(end);
	/* A share each: a slow one must not be stopped by a fast one. */
	for (int i = 0; i < 4 && end->state == END_OPEN; i++) {
		bool has_moved = send_next(end);

		if (end->state == END_OPEN)
			has_moved |= receive_next(end);
		if (!has_moved)
			break;
	}
	shut_down(end);
	close_when_done(end);
	if (!end->connection)
		choose_events(end);
}

/* For too long, and of a VM to which nobody does anything: nothing else is waited for. */
static bool has_waited_for_credit(const struct end *end)
{
	int64_t since = shared->last_slow > end->moved_at ? shared->last_slow : end->moved_at;

	return end->is_one_way && end->state == END_OPEN && end->vm == BYSTANDER &&
	       now_ms() - since > CREDIT_LIMIT;
}

bool end_is_stuck(const struct end *end)
{
	if (end->state == END_OVER)
		return false;
	return has_waited_for_credit(end) || now_ms() - end->moved_at > LIMIT;
}
