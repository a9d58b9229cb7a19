/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A hostile front-end: vhost-user messages over a real socket, with fds of any kind,
 * whole or in pieces, to framing and session as the front has them. The device behind
 * the session is played by the input: it does what it is asked to, later or not at all.
 *
 * Beside the session runs a small one of our own, which knows what a message that was
 * acknowledged has changed; and whatever happened, the fds that are open are those that
 * the session holds.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/frontend.h"
#include "broker/session.h"
#include "tests/fuzz/drafts.h"

#define GUEST_CID    UINT64_C(0x1122334455667788)
#define MESSAGES_MAX 200
#define HEADER_SIZE  DRAFT_HEADER_SIZE

/* What is true once a message was acknowledged. */
struct truth {
	uint64_t features, protocol_features;
	size_t n_regions;
	bool is_started[SESSION_RINGS], is_enabled[SESSION_RINGS];
};

static struct {
	struct input *input;
	struct session session, before;
	struct frontend frontend;
	int peer;
	size_t n_fds;	    /* while there is no session */
	struct draft draft; /* the message in hand, as it was sent */
	struct truth truth;
	struct truth told; /* the device, by what it was asked to do */
	bool has_failed;   /* it failed once: what it knows is not compared any more */
	uint32_t n_config_reads;
	int backend_fd; /* owned by the device; -1: none */
} f;

#define PROTOCOL_FEATURES (SESSION_PROTOCOL_FEATURES | SESSION_PROTOCOL_FEATURES_IN_BAND)

/* ---- the device ---- */

static int outcome(void)
{
	switch (input_u8(f.input) % 8) {
	case 0:
		f.has_failed = true;
		return -EIO;
	case 1:
	case 2:
	case 3:
		return SESSION_E_PENDING;
	default:
		return 0;
	}
}

static int on_features_set(void *context)
{
	(void)context;
	f.told.features = f.session.features;
	return outcome();
}

static int on_memory_replaced(void *context)
{
	(void)context;
	f.told.n_regions = f.session.n_regions;
	return outcome();
}

static bool is_in_table(const struct session_region *region)
{
	return region >= f.session.regions && region < f.session.regions + f.session.n_regions;
}

static int on_region_added(void *context, const struct session_region *region)
{
	(void)context;
	CLAIM(is_in_table(region));
	f.told.n_regions++;
	return outcome();
}

static int on_region_removed(void *context, const struct session_region *region)
{
	(void)context;
	CLAIM(!is_in_table(region) && region->fd >= 0 && region->size > 0);
	f.told.n_regions--;
	return outcome();
}

static int on_ring_started(void *context, uint32_t ring)
{
	(void)context;
	CLAIM(f.session.rings[ring].is_started);
	f.told.is_started[ring] = true;
	return outcome();
}

static int on_ring_stopped(void *context, uint32_t ring)
{
	(void)context;
	CLAIM(!f.session.rings[ring].is_started);
	f.told.is_started[ring] = false;
	return outcome();
}

static int on_ring_enabled(void *context, uint32_t ring)
{
	(void)context;
	f.told.is_enabled[ring] = f.session.rings[ring].is_enabled;
	return outcome();
}

static int on_ring_fd_set(void *context, uint32_t ring, enum session_ring_fd which)
{
	(void)context;
	CLAIM(ring < SESSION_RINGS && (which == SESSION_CALL || which == SESSION_ERR));
	return outcome();
}

static int on_ring_log_set(void *context, uint32_t ring)
{
	(void)context;
	CLAIM(f.session.rings[ring].is_started);
	return outcome();
}

static int on_plain(void *context)
{
	(void)context;
	return outcome();
}

static int on_log_set(void *context)
{
	(void)context;
	CLAIM(f.session.log.fd >= 0 && f.session.log.size > 0);
	return outcome();
}

static int on_state_transfer(void *context, bool is_load)
{
	(void)context;
	(void)is_load;
	CLAIM(f.session.state_fd >= 0);
	for (size_t i = 0; i < SESSION_RINGS; i++)
		CLAIM(!f.session.rings[i].is_started);
	return outcome();
}

static int on_ring_kicked(void *context, uint32_t ring)
{
	(void)context;
	CLAIM(f.session.rings[ring].is_started);
	CLAIM(f.session.protocol_features & VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
	return outcome();
}

static void on_backend_fd_set(void *context, int fd)
{
	(void)context;
	if (f.backend_fd >= 0)
		close(f.backend_fd);
	f.backend_fd = fd;
}

static void on_config_read(void *context)
{
	(void)context;
	f.n_config_reads++;
}

static const struct session_operations operations = {
	.features_set = on_features_set,
	.memory_replaced = on_memory_replaced,
	.region_added = on_region_added,
	.region_removed = on_region_removed,
	.ring_started = on_ring_started,
	.ring_stopped = on_ring_stopped,
	.ring_enabled = on_ring_enabled,
	.ring_fd_set = on_ring_fd_set,
	.device_reset = on_plain,
	.ring_log_set = on_ring_log_set,
	.log_set = on_log_set,
	.log_fd_set = on_plain,
	.state_transfer = on_state_transfer,
	.state_check = on_plain,
	.ring_kicked = on_ring_kicked,
	.backend_fd_set = on_backend_fd_set,
	.config_read = on_config_read,
};

/* ---- what has to hold ---- */

static void check_regions(void)
{
	const struct session *session = &f.session;

	CLAIM(session->n_regions <= SESSION_REGIONS_MAX);
	for (size_t i = 0; i < session->n_regions; i++) {
		const struct session_region *region = &session->regions[i];

		CLAIM(region->fd >= 0 && region->size > 0);
		CLAIM(region->guest_address + (region->size - 1) >= region->guest_address);
		CLAIM(region->user_address + (region->size - 1) >= region->user_address);
		/* The size of each file that this target makes. */
		CLAIM(region->size <= FUZZ_MEMORY_SIZE &&
		      region->mmap_offset <= FUZZ_MEMORY_SIZE - region->size);
		for (size_t k = 0; k < i; k++) {
			const struct session_region *other = &session->regions[k];

			CLAIM(other->guest_address + other->size <= region->guest_address);
			CLAIM(other->user_address + other->size <= region->user_address ||
			      region->user_address + region->size <= other->user_address);
		}
	}
}

/* In a packed ring the device is at most one round behind the driver, and never before it. */
static bool is_place(const struct session_ring *ring, bool is_packed)
{
	uint32_t avail = ring->base & 0x7fff, used = ring->base >> 16 & 0x7fff;

	if (!is_packed)
		return ring->base <= UINT16_MAX;
	if (avail >= ring->num || used >= ring->num)
		return false;
	return (ring->base >> 31 == (ring->base >> 15 & 1)) ? used <= avail : avail <= used;
}

static void check_rings(void)
{
	bool is_packed = f.session.features & VIRTIO_F_RING_PACKED;

	for (size_t i = 0; i < SESSION_RINGS; i++) {
		const struct session_ring *ring = &f.session.rings[i];

		CLAIM(ring->num <= SESSION_RING_SIZE_MAX);
		CLAIM(!ring->is_started || (ring->num > 0 && ring->has_addresses &&
					    (is_packed || (ring->num & (ring->num - 1)) == 0)));
		CLAIM(!ring->is_started || is_place(ring, is_packed));
		CLAIM(!ring->has_addresses ||
		      (ring->desc % 16 == 0 && ring->avail % 2 == 0 && ring->used % 4 == 0));
		CLAIM(ring->is_started || ring->fds[SESSION_KICK] < 0);
	}
}

static size_t count_session_fds(void)
{
	const struct session *session = &f.session;
	size_t n = session->n_regions;

	for (size_t i = 0; i < SESSION_RINGS; i++)
		for (size_t k = 0; k < SESSION_RING_FDS; k++)
			n += session->rings[i].fds[k] >= 0;
	return n + (session->log.fd >= 0) + (session->log.event_fd >= 0) + (session->state_fd >= 0);
}

/* Between two messages. */
static void check_session(void)
{
	const struct session *session = &f.session;

	CLAIM(!(session->features & ~(SESSION_FEATURES | VHOST_USER_F_PROTOCOL_FEATURES)));
	CLAIM(!(session->protocol_features & ~PROTOCOL_FEATURES));
	CLAIM(session->state_fd < 0);
	CLAIM(session->features == f.truth.features);
	CLAIM(session->protocol_features == f.truth.protocol_features);
	CLAIM(session->n_regions == f.truth.n_regions);
	for (size_t i = 0; i < SESSION_RINGS; i++) {
		CLAIM(session->rings[i].is_started == f.truth.is_started[i]);
		CLAIM(session->rings[i].is_enabled == f.truth.is_enabled[i]);
	}
	if (!f.has_failed) {
		f.told.protocol_features = f.truth.protocol_features; /* nobody's business */
		CLAIM(memcmp(&f.told, &f.truth, sizeof(f.told)) == 0);
	}
	check_regions();
	check_rings();
	CLAIM(fuzz_count_fds() == f.n_fds + 2 + (f.backend_fd >= 0) + count_session_fds());
}

/* A ring that goes on running stays where it is. */
static void check_started(void)
{
	for (size_t i = 0; i < SESSION_RINGS; i++) {
		const struct session_ring *before = &f.before.rings[i], *ring = &f.session.rings[i];

		if (!before->is_started || !ring->is_started)
			continue;
		CLAIM(ring->num == before->num && ring->base == before->base);
		CLAIM(ring->desc == before->desc && ring->avail == before->avail &&
		      ring->used == before->used);
	}
}

/* A message that was refused has changed nothing. */
static void check_unchanged(void)
{
	const struct session *before = &f.before, *session = &f.session;

	CLAIM(session->features == before->features);
	CLAIM(session->has_features == before->has_features);
	CLAIM(session->protocol_features == before->protocol_features);
	CLAIM(session->n_regions == before->n_regions);
	CLAIM(memcmp(session->regions, before->regions,
		     before->n_regions * sizeof(before->regions[0])) == 0);
	CLAIM(memcmp(session->rings, before->rings, sizeof(before->rings)) == 0);
	CLAIM(memcmp(&session->log, &before->log, sizeof(before->log)) == 0);
}

static uint64_t payload_u64(void)
{
	uint64_t value;

	memcpy(&value, f.draft.message.payload, sizeof(value));
	return value;
}

static struct vhost_user_vring_state payload_state(void)
{
	struct vhost_user_vring_state state;

	memcpy(&state, f.draft.message.payload, sizeof(state));
	return state;
}

static void set_all(bool *rings, bool value)
{
	for (size_t i = 0; i < SESSION_RINGS; i++)
		rings[i] = value;
}

static void claim_kinds(enum fuzz_fd a, enum fuzz_fd b)
{
	for (size_t i = 0; i < f.draft.n_fds; i++)
		CLAIM(f.draft.kinds[i] == a || f.draft.kinds[i] == b);
}

/* Without SET_VRING_ENABLE, a ring that starts is enabled. */
static void start_in_truth(uint64_t ring)
{
	f.truth.is_started[ring] = true;
	if (f.session.has_features && !(f.truth.features & VHOST_USER_F_PROTOCOL_FEATURES))
		f.truth.is_enabled[ring] = true;
}

/* The message in hand was acknowledged. */
static void become_true(void)
{
	struct truth *truth = &f.truth;

	switch (f.draft.message.header.request) {
	case VHOST_USER_SET_FEATURES:
		truth->features = payload_u64();
		if (!(truth->features & VHOST_USER_F_PROTOCOL_FEATURES))
			set_all(truth->is_enabled, true);
		break;
	case VHOST_USER_SET_PROTOCOL_FEATURES:
		truth->protocol_features = payload_u64();
		break;
	case VHOST_USER_SET_MEM_TABLE:
		claim_kinds(FUZZ_FD_MEMORY, FUZZ_FD_SEALED);
		truth->n_regions = f.draft.n_fds;
		break;
	case VHOST_USER_ADD_MEM_REG:
		claim_kinds(FUZZ_FD_MEMORY, FUZZ_FD_SEALED);
		truth->n_regions++;
		break;
	case VHOST_USER_REM_MEM_REG:
		truth->n_regions--;
		break;
	case VHOST_USER_SET_LOG_BASE:
		claim_kinds(FUZZ_FD_MEMORY, FUZZ_FD_SEALED);
		break;
	case VHOST_USER_SET_BACKEND_REQ_FD:
		claim_kinds(FUZZ_FD_UNIX, FUZZ_FD_PACKET);
		break;
	case VHOST_USER_VRING_KICK:
		/* A started one that a reset has disabled is not enabled by a kick. */
		if (!truth->is_started[payload_state().index])
			start_in_truth(payload_state().index);
		break;
	case VHOST_USER_SET_VRING_KICK:
		start_in_truth(payload_u64() & 0xff);
		claim_kinds(FUZZ_FD_EVENT, FUZZ_FD_EPOLL); /* of no file type either */
		break;
	case VHOST_USER_SET_VRING_CALL:
	case VHOST_USER_SET_VRING_ERR:
	case VHOST_USER_SET_LOG_FD:
		claim_kinds(FUZZ_FD_EVENT, FUZZ_FD_EPOLL);
		break;
	case VHOST_USER_GET_VRING_BASE:
		truth->is_started[payload_state().index] = false;
		break;
	case VHOST_USER_SET_VRING_ENABLE:
		truth->is_enabled[payload_state().index] = payload_state().num;
		break;
	case VHOST_USER_RESET_OWNER:
	case VHOST_USER_RESET_DEVICE:
		set_all(truth->is_enabled, false);
		break;
	}
}

static uint64_t reply_u64(void)
{
	uint64_t value;

	CLAIM(f.session.reply_len == HEADER_SIZE + sizeof(value));
	memcpy(&value, f.session.reply + HEADER_SIZE, sizeof(value));
	return value;
}

static void check_config(void)
{
	struct vhost_user_config asked, told;
	uint64_t guest_cid = GUEST_CID;
	uint8_t bytes[VHOST_USER_CONFIG_MAX];

	memcpy(&asked, f.draft.message.payload, sizeof(asked));
	memcpy(&told, f.session.reply + HEADER_SIZE, sizeof(told));
	/* As long as the request in any case; a size of 0 says that there is no such place. */
	CLAIM(f.session.reply_len == HEADER_SIZE + f.draft.message.header.size);
	if (told.size == 0)
		return;
	CLAIM(told.size == asked.size && told.offset == asked.offset);
	CLAIM((uint64_t)asked.offset + asked.size <= sizeof(guest_cid));
	memcpy(bytes, f.session.reply + HEADER_SIZE + sizeof(told), told.size);
	CLAIM(memcmp(bytes, (uint8_t *)&guest_cid + told.offset, told.size) == 0);
}

static void check_answer(void)
{
	struct vhost_user_vring_state base;

	switch (f.draft.message.header.request) {
	case VHOST_USER_GET_FEATURES:
		CLAIM(reply_u64() == SESSION_FEATURES);
		return;
	case VHOST_USER_GET_PROTOCOL_FEATURES:
		CLAIM(reply_u64() == PROTOCOL_FEATURES);
		return;
	case VHOST_USER_GET_QUEUE_NUM:
		CLAIM(reply_u64() == SESSION_RINGS);
		return;
	case VHOST_USER_GET_MAX_MEM_SLOTS:
		CLAIM(reply_u64() == SESSION_REGIONS_MAX);
		return;
	case VHOST_USER_GET_CONFIG:
		check_config();
		return;
	case VHOST_USER_GET_VRING_BASE:
		CLAIM(f.session.reply_len == HEADER_SIZE + sizeof(base));
		memcpy(&base, f.session.reply + HEADER_SIZE, sizeof(base));
		CLAIM(base.index == payload_state().index);
		CLAIM(base.num == f.session.rings[base.index].base);
		return;
	}
}

/* A reply where there has to be one, and nowhere else; it reaches the front-end as it is. */
static void check_reply(bool is_refused)
{
	const struct vhost_user_rule *rule = vhost_user_rule(f.draft.message.header.request);
	bool has_ack = f.draft.message.header.flags & VHOST_USER_NEED_REPLY &&
		       f.truth.protocol_features & VHOST_USER_PROTOCOL_F_REPLY_ACK;
	bool has_reply = rule && rule->has_reply;
	struct vhost_user_header header;
	uint8_t received[VHOST_USER_REPLY_MAX + 1];

	CLAIM((f.session.reply_len > 0) == (has_reply || has_ack));
	if (f.session.reply_len == 0)
		return;
	CLAIM(f.session.reply_len <= sizeof(f.session.reply));
	memcpy(&header, f.session.reply, sizeof(header));
	CLAIM(header.request == f.draft.message.header.request);
	CLAIM(header.flags == VHOST_USER_REPLY_FLAGS);
	CLAIM(header.size == f.session.reply_len - sizeof(header));
	if (!has_reply)
		CLAIM((reply_u64() != 0) == is_refused);
	else if (!is_refused)
		check_answer();

	CLAIM(frontend_send(&f.frontend, f.session.reply, f.session.reply_len) == 0);
	CLAIM(!frontend_wants_write(&f.frontend));
	CLAIM(recv(f.peer, received, sizeof(received), MSG_DONTWAIT) ==
	      (ssize_t)f.session.reply_len);
	CLAIM(memcmp(received, f.session.reply, f.session.reply_len) == 0);
}

/* ---- one message ---- */

/* The answers of the device come until none is pending; now and then a message too early. */
static int finish(int result)
{
	while (result == SESSION_E_PENDING) {
		uint8_t choice = input_u8(f.input);

		CLAIM(f.session.reply_len == 0);
		if (choice == 0xff)
			return session_handle(&f.session, &f.draft.message, NULL, 0);
		if (choice % 8 == 0)
			f.has_failed = true;
		result = session_complete(&f.session, choice % 8 == 0 ? -EIO : 0, choice);
	}
	return result;
}

/* false: the session is over. */
static bool handle(const struct vhost_user_message *message, int *fds, size_t n_fds)
{
	bool is_refused;
	int result;

	CLAIM(memcmp(&message->header, &f.draft.message.header, HEADER_SIZE) == 0);
	CLAIM(memcmp(message->payload, f.draft.message.payload, message->header.size) == 0);
	CLAIM(n_fds == f.draft.n_fds);
	f.before = f.session;
	result = finish(session_handle(&f.session, message, fds, n_fds));
	CLAIM(result == 0 || result == SESSION_E_CLOSE);
	if (result == SESSION_E_CLOSE) {
		CLAIM(session_reason(&f.session)[0] != '\0');
		return false;
	}
	/* CHECK_DEVICE_STATE and SET_DEVICE_STATE_FD say "no" without a reason of the session's. */
	is_refused = session_reason(&f.session)[0] != '\0';
	if (is_refused)
		check_unchanged();
	else
		become_true();
	check_reply(is_refused);
	check_started();
	check_session();
	return true;
}

/* false: the session is over, as it has to be when framing is broken. */
static bool receive(void)
{
	const struct vhost_user_message *message;
	int fds[VHOST_USER_FDS_MAX];
	size_t n_fds;
	int r = frontend_receive(&f.frontend, &message, fds, &n_fds);

	if (r == 1)
		return handle(message, fds, n_fds);
	if (r != 0)
		CLAIM(r != FRONTEND_E_BROKEN || frontend_reason(&f.frontend)[0] != '\0');
	return r == 0;
}

/* In one piece or in two; the fds with the first byte, or where they don't belong. */
static bool send_draft(size_t len)
{
	size_t promised = HEADER_SIZE + f.draft.message.header.size, at = input_u8(f.input);
	bool has_late_fds = at & 0x80 && at & 0x40, goes_on = true;

	at = at & 0x80 ? at & 0x3f : 0;
	if (at == 0 || at >= len || at >= promised) {
		draft_send(&f.draft, f.peer, 0, len, true);
	} else {
		draft_send(&f.draft, f.peer, 0, at, !has_late_fds);
		goes_on = receive();
		draft_send(&f.draft, f.peer, at, len, has_late_fds);
	}
	draft_drop(&f.draft);
	return goes_on && receive();
}

/* What the header promises beyond what was sent, and what was sent beyond it, ends the session. */
static bool say_something(void)
{
	draft_make(&f.draft, f.input, &f.session);
	return send_draft(f.draft.len) && f.draft.len == HEADER_SIZE + f.draft.message.header.size;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct input input = {bytes, len};
	int pair[2];

	f.input = &input;
	f.n_fds = fuzz_count_fds();
	f.has_failed = false;
	f.backend_fd = -1;
	memset(&f.truth, 0, sizeof(f.truth));
	memset(&f.told, 0, sizeof(f.told));
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	f.peer = pair[0];
	frontend_init(&f.frontend, pair[1]);
	session_init(&f.session, GUEST_CID, SESSION_FEATURES, PROTOCOL_FEATURES, &operations, NULL);
	check_session();
	for (int i = 0; i < MESSAGES_MAX && input.len > 0 && say_something(); i++)
		;
	close(f.peer);
	frontend_end(&f.frontend);
	session_end(&f.session);
	session_end(&f.session);
	on_backend_fd_set(NULL, -1);
	CLAIM(fuzz_count_fds() == f.n_fds);
	return 0;
}
