/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/session.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "broker/session_internal.h"

/* Alignments of a virtqueue's parts, virtio 1.3, 2.7 and 2.8.10. */
#define DESC_ALIGNMENT	       16
#define AVAIL_ALIGNMENT	       2
#define PACKED_AVAIL_ALIGNMENT 4
#define USED_ALIGNMENT	       4

/* Of a packed ring's base, each half: which round of the ring, and where in it. */
#define BASE_WRAP  UINT32_C(0x8000)
#define BASE_INDEX UINT32_C(0x7fff)

static bool is_packed(const struct session *session)
{
	return session->features & VIRTIO_F_RING_PACKED;
}

static int check_ring(struct session *session, uint64_t index)
{
	if (index >= SESSION_RINGS)
		return session_refuse(session, "there is no ring %" PRIu64, index);
	return 0;
}

static int read_state(struct session *session, const struct session_incoming *incoming,
		      struct vhost_user_vring_state *ret_state)
{
	memcpy(ret_state, incoming->message->payload, sizeof(*ret_state));
	return check_ring(session, ret_state->index);
}

bool session_is_any_ring_started(const struct session *session)
{
	for (size_t i = 0; i < SESSION_RINGS; i++)
		if (session->rings[i].is_started)
			return true;
	return false;
}

bool session_is_in_band(const struct session *session, uint32_t ring, enum session_ring_fd which)
{
	return session->protocol_features & VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS &&
	       session->rings[ring].fds[which] < 0 && !session->rings[ring].is_polled[which];
}

static bool is_size(const struct session *session, uint32_t num)
{
	return num > 0 && num <= SESSION_RING_SIZE_MAX &&
	       (is_packed(session) || (num & (num - 1)) == 0);
}

int session_on_set_vring_num(struct session *session, const struct session_incoming *incoming)
{
	struct vhost_user_vring_state state;
	struct session_ring *ring;
	int status = read_state(session, incoming, &state);

	if (status < 0)
		return status;
	ring = &session->rings[state.index];
	if (!is_size(session, state.num))
		return session_refuse(session, "ring %" PRIu32 ": size %" PRIu32 " is not %s %d",
				      state.index, state.num,
				      is_packed(session) ? "from 1 to" : "a power of two up to",
				      SESSION_RING_SIZE_MAX);
	if (ring->is_started && ring->num != state.num)
		return session_refuse(session, "ring %" PRIu32 " is started", state.index);
	ring->num = state.num;
	return 0;
}

int session_on_set_vring_addr(struct session *session, const struct session_incoming *incoming)
{
	struct vhost_user_vring_addr addr;
	struct session_ring *ring;
	int status;

	memcpy(&addr, incoming->message->payload, sizeof(addr));
	status = check_ring(session, addr.index);
	if (status < 0)
		return status;
	if (addr.flags & ~VHOST_USER_VRING_F_LOG)
		return session_refuse(session, "ring %" PRIu32 ": unknown flags 0x%" PRIx32,
				      addr.index, addr.flags);
	if (addr.desc % DESC_ALIGNMENT ||
	    addr.avail % (is_packed(session) ? PACKED_AVAIL_ALIGNMENT : AVAIL_ALIGNMENT) ||
	    addr.used % USED_ALIGNMENT)
		return session_refuse(session,
				      "ring %" PRIu32 " is not aligned: 0x%" PRIx64 " 0x%" PRIx64
				      " 0x%" PRIx64,
				      addr.index, addr.desc, addr.avail, addr.used);

	ring = &session->rings[addr.index];
	/* "SET_VRING_ADDR" may come again on a started ring, for its log flag only. */
	if (ring->is_started &&
	    (ring->desc != addr.desc || ring->avail != addr.avail || ring->used != addr.used))
		return session_refuse(session, "ring %" PRIu32 " is started", addr.index);
	ring->desc = addr.desc;
	ring->used = addr.used;
	ring->avail = addr.avail;
	ring->has_addresses = true;
	ring->is_logged = addr.flags & VHOST_USER_VRING_F_LOG;
	ring->log_address = addr.log_guest_addr;
	if (ring->is_started)
		return session_call_ring(session, session->operations->ring_log_set, addr.index);
	return 0;
}

int session_on_set_vring_base(struct session *session, const struct session_incoming *incoming)
{
	struct vhost_user_vring_state state;
	int status = read_state(session, incoming, &state);

	if (status < 0)
		return status;
	if (session->rings[state.index].is_started)
		return session_refuse(session, "ring %" PRIu32 " is started", state.index);
	/* Of a split ring the upper half is without meaning. */
	session->rings[state.index].base = is_packed(session) ? state.num : (uint16_t)state.num;
	return 0;
}

/* Steps from one position to another: positions repeat after two rounds. */
static uint32_t base_distance(uint32_t num, uint32_t from, uint32_t to)
{
	uint32_t n = (to & BASE_INDEX) + 2 * num - (from & BASE_INDEX);

	if ((from ^ to) & BASE_WRAP)
		n += num;
	return n % (2 * num);
}

bool session_is_base(const struct session *session, uint32_t ring, uint64_t base)
{
	uint32_t num = session->rings[ring].num, avail = base & UINT16_MAX;
	uint32_t used = (uint32_t)(base >> 16) & UINT16_MAX;

	if (!is_packed(session))
		return base <= UINT16_MAX;
	return base <= UINT32_MAX && (avail & BASE_INDEX) < num && (used & BASE_INDEX) < num &&
	       base_distance(num, used, avail) <= num;
}

void session_reply_vring_base(struct session *session, uint32_t index)
{
	struct vhost_user_vring_state state = {.index = index, .num = session->rings[index].base};

	session_reply(session, &state, sizeof(state));
}

/* The reply is made when the ring has stopped; in a stopped one the base stands already. */
int session_on_get_vring_base(struct session *session, const struct session_incoming *incoming)
{
	struct vhost_user_vring_state state;
	struct session_ring *ring;
	int status = read_state(session, incoming, &state);

	if (status < 0)
		return status;
	ring = &session->rings[state.index];
	session->current.ring = state.index;
	if (!ring->is_started)
		return 0;

	ring->is_started = false;
	/* The call fd stays: QEMU starts the ring again before it sends the real one. */
	ring->fds[SESSION_KICK] = -1;
	ring->is_polled[SESSION_KICK] = false;
	return session_call_ring(session, session->operations->ring_stopped, state.index);
}

static int set_ring_fd(struct session *session, const struct session_incoming *incoming,
		       enum session_ring_fd which, uint32_t *ret_ring)
{
	uint64_t value = session_payload_u64(incoming);
	uint64_t index = value & VHOST_USER_VRING_INDEX_MASK;
	struct statx stat;

	if (value & ~(VHOST_USER_VRING_INDEX_MASK | VHOST_USER_VRING_NOFD))
		return session_refuse(session, "unknown bits in 0x%" PRIx64, value);
	if (check_ring(session, index) < 0)
		return -EINVAL;
	/*
	 * An eventfd has no file type. Anything else could block or be heard by others where
	 * this fd is written to or closed: sockets, pipes, files.
	 */
	if (incoming->n_fds > 0 &&
	    (session_stat_fd(incoming->fds[0], &stat) < 0 || stat.stx_mode & S_IFMT))
		return session_refuse(session, "ring %" PRIu64 ": the fd is no eventfd", index);

	/* Whether there has to be one was checked with the message. */
	session->rings[index].fds[which] =
		incoming->n_fds > 0 ? session_take_fd(&incoming->fds[0]) : -1;
	session->rings[index].is_polled[which] = incoming->n_fds == 0;
	*ret_ring = (uint32_t)index;
	return 0;
}

static int start_ring(struct session *session, uint32_t index)
{
	struct session_ring *ring = &session->rings[index];

	if (!is_size(session, ring->num) || !ring->has_addresses)
		return session_refuse(session, "ring %" PRIu32 " has no size or no addresses",
				      index);
	if (!ring->is_started && !session_is_base(session, index, ring->base))
		return session_refuse(session,
				      "ring %" PRIu32 " of %" PRIu32 " cannot start at 0x%" PRIx32,
				      index, ring->num, ring->base);
	ring->is_started = true;
	/* "Ring states": nobody could enable it again, after a reset say, so it starts enabled. */
	if (session->has_features && !(session->features & VHOST_USER_F_PROTOCOL_FEATURES) &&
	    !ring->is_enabled) {
		ring->is_enabled = true;
		session->current.switched_rings = UINT32_C(1) << index;
	}
	return session_call_ring(session, session->operations->ring_started, index);
}

int session_on_set_vring_kick(struct session *session, const struct session_incoming *incoming)
{
	uint32_t index = 0;
	int status = set_ring_fd(session, incoming, SESSION_KICK, &index);

	if (status < 0)
		return status;
	return start_ring(session, index);
}

/* "VRING_KICK" starts a stopped ring: a start looks at what is there, as a kick does. */
int session_on_vring_kick(struct session *session, const struct session_incoming *incoming)
{
	struct vhost_user_vring_state state;
	int status = read_state(session, incoming, &state);

	if (status < 0)
		return status;
	if (state.num != 0)
		return session_refuse(session, "ring %" PRIu32 ": %" PRIu32 " where 0 is reserved",
				      state.index, state.num);
	if (!session->rings[state.index].is_started)
		return start_ring(session, state.index);
	return session_call_ring(session, session->operations->ring_kicked, state.index);
}

/* May come again: the socket before it is of no more use. */
int session_on_set_backend_req_fd(struct session *session, const struct session_incoming *incoming)
{
	if (!session_is_unix_socket(incoming->fds[0]))
		return session_refuse(session, "the fd is no unix socket");
	if (session->operations->backend_fd_set)
		session->operations->backend_fd_set(session->context,
						    session_take_fd(&incoming->fds[0]));
	return 0;
}

static int set_and_tell(struct session *session, const struct session_incoming *incoming,
			enum session_ring_fd which)
{
	uint32_t index = 0;
	int status = set_ring_fd(session, incoming, which, &index);

	if (status < 0 || !session->operations->ring_fd_set)
		return status;
	return session->operations->ring_fd_set(session->context, index, which);
}

int session_on_set_vring_call(struct session *session, const struct session_incoming *incoming)
{
	return set_and_tell(session, incoming, SESSION_CALL);
}

int session_on_set_vring_err(struct session *session, const struct session_incoming *incoming)
{
	return set_and_tell(session, incoming, SESSION_ERR);
}

int session_on_set_vring_enable(struct session *session, const struct session_incoming *incoming)
{
	struct vhost_user_vring_state state;
	int status = read_state(session, incoming, &state);

	if (status < 0)
		return status;
	if (!(session->features & VHOST_USER_F_PROTOCOL_FEATURES))
		return session_refuse(session, "feature bit 30 was not negotiated");
	if (state.num > 1)
		return session_refuse(session, "ring %" PRIu32 ": %" PRIu32 " is neither 0 nor 1",
				      state.index, state.num);
	if (session->rings[state.index].is_enabled == state.num)
		return 0;
	session->rings[state.index].is_enabled = state.num;
	session->current.switched_rings = UINT32_C(1) << state.index;
	return 0;
}
