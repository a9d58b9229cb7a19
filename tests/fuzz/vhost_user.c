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
#include "tests/fuzz/fuzz.h"

#define GUEST_CID    UINT64_C(0x1122334455667788)
#define MESSAGES_MAX 200
#define FDS_MAX	     40 /* more than a message may have */
#define HEADER_SIZE  sizeof(struct vhost_user_header)
#define FUTURE_BITS  (UINT64_C(1) << 60) /* offered by nobody */

/* A message to be sent. */
struct draft {
	struct vhost_user_message message;
	enum fuzz_fd kinds[FDS_MAX];
	int fds[FDS_MAX];
	size_t n_fds;
};

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
} f;

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

static void check_rings(void)
{
	for (size_t i = 0; i < SESSION_RINGS; i++) {
		const struct session_ring *ring = &f.session.rings[i];

		CLAIM(ring->num <= SESSION_RING_SIZE_MAX && (ring->num & (ring->num - 1)) == 0);
		CLAIM(!ring->is_started || (ring->num > 0 && ring->has_addresses));
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
	CLAIM(!(session->protocol_features & ~SESSION_PROTOCOL_FEATURES));
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
	CLAIM(fuzz_count_fds() == f.n_fds + 2 + count_session_fds());
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
	case VHOST_USER_SET_VRING_KICK:
		truth->is_started[payload_u64() & 0xff] = true;
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
		CLAIM(reply_u64() == SESSION_PROTOCOL_FEATURES);
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

static void send_part(size_t from, size_t to, const int *fds, size_t n_fds)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * FDS_MAX)];
		struct cmsghdr alignment;
	} control = {.bytes = {0}};
	uint8_t bytes[HEADER_SIZE + VHOST_USER_PAYLOAD_MAX];
	struct iovec iov = {bytes + from, to - from};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	memcpy(bytes, &f.draft.message.header, HEADER_SIZE);
	memcpy(bytes + HEADER_SIZE, f.draft.message.payload, VHOST_USER_PAYLOAD_MAX);
	if (n_fds > 0) {
		struct cmsghdr *cmsg;

		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * n_fds);
	}
	CLAIM(sendmsg(f.peer, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)(to - from));
}

static void drop_draft(void)
{
	for (size_t i = 0; i < f.draft.n_fds; i++)
		close(f.draft.fds[i]);
}

/* In one piece or in two; the fds with the first byte, or where they don't belong. */
static bool send_draft(size_t len)
{
	size_t at = input_u8(f.input);
	bool has_late_fds = at & 0x80 && at & 0x40, goes_on = true;

	at = at & 0x80 ? at & 0x3f : 0;
	if (at == 0 || at >= len) {
		send_part(0, len, f.draft.fds, f.draft.n_fds);
	} else {
		send_part(0, at, f.draft.fds, has_late_fds ? 0 : f.draft.n_fds);
		goes_on = receive();
		send_part(at, len, f.draft.fds, has_late_fds ? f.draft.n_fds : 0);
	}
	drop_draft();
	return goes_on && receive();
}

/* ---- drafts ---- */

static const uint32_t requests[] = {
	VHOST_USER_GET_FEATURES,
	VHOST_USER_SET_FEATURES,
	VHOST_USER_SET_OWNER,
	VHOST_USER_RESET_OWNER,
	VHOST_USER_SET_MEM_TABLE,
	VHOST_USER_SET_LOG_BASE,
	VHOST_USER_SET_LOG_FD,
	VHOST_USER_SET_VRING_NUM,
	VHOST_USER_SET_VRING_ADDR,
	VHOST_USER_SET_VRING_BASE,
	VHOST_USER_GET_VRING_BASE,
	VHOST_USER_SET_VRING_KICK,
	VHOST_USER_SET_VRING_CALL,
	VHOST_USER_SET_VRING_ERR,
	VHOST_USER_GET_PROTOCOL_FEATURES,
	VHOST_USER_SET_PROTOCOL_FEATURES,
	VHOST_USER_GET_QUEUE_NUM,
	VHOST_USER_SET_VRING_ENABLE,
	VHOST_USER_GET_CONFIG,
	VHOST_USER_SET_CONFIG,
	VHOST_USER_RESET_DEVICE,
	VHOST_USER_GET_MAX_MEM_SLOTS,
	VHOST_USER_ADD_MEM_REG,
	VHOST_USER_REM_MEM_REG,
	VHOST_USER_SET_DEVICE_STATE_FD,
	VHOST_USER_CHECK_DEVICE_STATE,
};

static void put(const void *bytes, size_t len)
{
	memcpy(f.draft.message.payload + f.draft.message.header.size, bytes, len);
	f.draft.message.header.size += (uint32_t)len;
}

static void put_u64(uint64_t value)
{
	put(&value, sizeof(value));
}

static void add_fd(enum fuzz_fd expected)
{
	uint8_t choice = input_u8(f.input);
	enum fuzz_fd kind = choice < 0xe0 ? expected : (enum fuzz_fd)(choice % FUZZ_FD_KINDS);

	f.draft.kinds[f.draft.n_fds] = kind;
	f.draft.fds[f.draft.n_fds++] = fuzz_open(kind);
}

static void put_features(uint64_t offered)
{
	uint8_t choice = input_u8(f.input);

	if (choice & 0x80)
		put_u64(input_u64(f.input));
	else
		put_u64((choice & 0x40 ? input_u64(f.input) : UINT64_MAX) & offered);
}

/* Small numbers of pages: they touch, overlap and end where a file does. */
static struct vhost_user_region make_region(void)
{
	const struct session *session = &f.session;
	uint8_t choice = input_u8(f.input);
	struct vhost_user_region region = {
		.guest_address = (uint64_t)input_u8(f.input) << 12,
		.size = (uint64_t)(input_u8(f.input) % 18) << 12,
		.user_address = (uint64_t)input_u8(f.input) << 12,
		.mmap_offset = (uint64_t)(input_u8(f.input) % 17) << 12,
	};

	if (choice & 0x80 && session->n_regions > 0) {
		const struct session_region *known = &session->regions[choice % session->n_regions];

		region = (struct vhost_user_region){known->guest_address, known->size,
						    known->user_address, known->mmap_offset};
	}
	if (choice & 0x40)
		((uint64_t *)&region)[choice % 4] += input_u64(f.input);
	return region;
}

static void put_mem_table(void)
{
	struct vhost_user_memory memory = {.n_regions = input_u8(f.input)};

	if (memory.n_regions < 0xf0)
		memory.n_regions %= 5;
	else
		memory.n_regions -= 0xf0 - (VHOST_USER_REGIONS_MAX - 8);
	put(&memory, sizeof(memory));
	for (uint32_t i = 0; i < memory.n_regions && i < FDS_MAX - 1; i++) {
		struct vhost_user_region region = make_region();

		put(&region, sizeof(region));
		add_fd(FUZZ_FD_MEMORY);
	}
}

static uint32_t ring_index(void)
{
	uint8_t choice = input_u8(f.input);

	return choice < 0xf0 ? choice % SESSION_RINGS : choice - 0xf0u;
}

static void put_state(uint32_t num)
{
	struct vhost_user_vring_state state = {ring_index(), num};

	put(&state, sizeof(state));
}

static void put_addr(void)
{
	struct vhost_user_vring_addr addr = {
		.index = ring_index(),
		.flags = input_u8(f.input) % 3,
		.desc = (uint64_t)input_u16(f.input) << 4,
		.used = (uint64_t)input_u16(f.input) << 2,
		.avail = (uint64_t)input_u16(f.input) << 1,
		.log_guest_addr = input_u64(f.input),
	};

	if (addr.flags == 2)
		addr.desc |= input_u8(f.input), addr.flags = input_u32(f.input);
	put(&addr, sizeof(addr));
}

static void put_ring_fd(void)
{
	uint8_t choice = input_u8(f.input);

	put_u64(ring_index() | (choice & 1 ? VHOST_USER_VRING_NOFD : 0) |
		(choice & 0x80 ? FUTURE_BITS : 0));
	if (!(choice & 1) || choice & 0x40)
		add_fd(FUZZ_FD_EVENT);
}

static void put_config(void)
{
	struct vhost_user_config config = {input_u8(f.input) % 12, input_u8(f.input) % 12,
					   input_u8(f.input)};
	uint8_t bytes[VHOST_USER_CONFIG_MAX] = {0};

	if (config.flags & 0x80)
		config.offset = input_u32(f.input);
	put(&config, sizeof(config));
	put(bytes, config.size);
}

static void put_region(bool has_fd)
{
	struct vhost_user_single_region single = {.region = make_region()};

	put(&single, sizeof(single));
	if (has_fd)
		add_fd(FUZZ_FD_MEMORY);
}

static void put_log(void)
{
	struct vhost_user_log log = {(uint64_t)input_u8(f.input) << 8, (uint64_t)input_u8(f.input)
									       << 8};

	put(&log, sizeof(log));
	add_fd(FUZZ_FD_MEMORY);
}

static void put_device_state(void)
{
	struct vhost_user_device_state state = {input_u8(f.input) % 3, 0};

	put(&state, sizeof(state));
	add_fd(input_u8(f.input) & 1 ? FUZZ_FD_PIPE_READ : FUZZ_FD_UNIX);
}

static void put_payload(uint32_t request)
{
	switch (request) {
	case VHOST_USER_SET_FEATURES:
		put_features(SESSION_FEATURES);
		return;
	case VHOST_USER_SET_PROTOCOL_FEATURES:
		put_features(SESSION_PROTOCOL_FEATURES);
		return;
	case VHOST_USER_SET_MEM_TABLE:
		put_mem_table();
		return;
	case VHOST_USER_SET_LOG_BASE:
		put_log();
		return;
	case VHOST_USER_SET_LOG_FD:
		add_fd(FUZZ_FD_EVENT);
		return;
	case VHOST_USER_SET_VRING_NUM:
		put_state(input_u8(f.input) & 0x80 ? input_u32(f.input)
						   : UINT32_C(1) << input_u8(f.input) % 17);
		return;
	case VHOST_USER_SET_VRING_ENABLE:
		put_state(input_u8(f.input) % 3);
		return;
	case VHOST_USER_SET_VRING_BASE:
	case VHOST_USER_GET_VRING_BASE:
		put_state(input_u32(f.input));
		return;
	case VHOST_USER_SET_VRING_ADDR:
		put_addr();
		return;
	case VHOST_USER_SET_VRING_KICK:
	case VHOST_USER_SET_VRING_CALL:
	case VHOST_USER_SET_VRING_ERR:
		put_ring_fd();
		return;
	case VHOST_USER_GET_CONFIG:
	case VHOST_USER_SET_CONFIG:
		put_config();
		return;
	case VHOST_USER_ADD_MEM_REG:
	case VHOST_USER_REM_MEM_REG:
		put_region(request == VHOST_USER_ADD_MEM_REG);
		return;
	case VHOST_USER_SET_DEVICE_STATE_FD:
		put_device_state();
		return;
	}
}

/* Anything: what the header says need not be what follows. */
static size_t make_anything(void)
{
	struct vhost_user_header *header = &f.draft.message.header;
	size_t len = HEADER_SIZE + input_u8(f.input);

	header->request = input_u8(f.input);
	header->flags = input_u8(f.input);
	header->size = input_u16(f.input);
	input_copy(f.input, f.draft.message.payload, len - HEADER_SIZE);
	for (uint8_t n = input_u8(f.input) % 4; n > 0; n--)
		add_fd(FUZZ_FD_EVENT);
	return len;
}

static size_t make_message(uint8_t choice)
{
	struct vhost_user_header *header = &f.draft.message.header;

	header->request = requests[choice % (sizeof(requests) / sizeof(requests[0]))];
	header->flags = VHOST_USER_VERSION | (choice & 0x80 ? VHOST_USER_NEED_REPLY : 0);
	put_payload(header->request);
	choice = input_u8(f.input);
	if (choice == 1)
		header->size -= header->size > 0;
	if (choice == 2)
		put(&choice, sizeof(choice));
	if (choice == 3 || choice == 4)
		add_fd(FUZZ_FD_EVENT);
	for (uint8_t n = choice == 4 ? FDS_MAX - 1 : 0; f.draft.n_fds < n;)
		add_fd(FUZZ_FD_EVENT);
	return HEADER_SIZE + header->size;
}

/* What the header promises beyond what was sent, and what was sent beyond it, ends the session. */
static bool say_something(void)
{
	uint8_t choice = input_u8(f.input);
	size_t len, promised;
	bool goes_on;

	memset(&f.draft.message.header, 0, HEADER_SIZE);
	f.draft.n_fds = 0;
	len = choice == 0xff ? make_anything() : make_message(choice);
	promised = HEADER_SIZE + f.draft.message.header.size;
	goes_on = send_draft(len);
	return goes_on && promised == len;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct input input = {bytes, len};
	int pair[2];

	f.input = &input;
	f.n_fds = fuzz_count_fds();
	f.has_failed = false;
	memset(&f.truth, 0, sizeof(f.truth));
	memset(&f.told, 0, sizeof(f.told));
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	f.peer = pair[0];
	frontend_init(&f.frontend, pair[1]);
	session_init(&f.session, GUEST_CID, SESSION_FEATURES, SESSION_PROTOCOL_FEATURES,
		     &operations, NULL);
	check_session();
	for (int i = 0; i < MESSAGES_MAX && input.len > 0 && say_something(); i++)
		;
	close(f.peer);
	frontend_end(&f.frontend);
	session_end(&f.session);
	session_end(&f.session);
	CLAIM(fuzz_count_fds() == f.n_fds);
	return 0;
}
