/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/drafts.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FUTURE_BITS (UINT64_C(1) << 60) /* offered by nobody */

/* What draft_make() was given. */
static struct draft *draft;
static struct input *input;
static const struct session *known;

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
	VHOST_USER_SET_BACKEND_REQ_FD,
	VHOST_USER_VRING_KICK,
};

static void put(const void *bytes, size_t len)
{
	memcpy(draft->message.payload + draft->message.header.size, bytes, len);
	draft->message.header.size += (uint32_t)len;
}

static void put_u64(uint64_t value)
{
	put(&value, sizeof(value));
}

static void add_fd(enum fuzz_fd expected)
{
	uint8_t choice = input_u8(input);
	enum fuzz_fd kind = choice < 0xe0 ? expected : (enum fuzz_fd)(choice % FUZZ_FD_KINDS);

	draft->kinds[draft->n_fds] = kind;
	draft->fds[draft->n_fds++] = fuzz_open(kind);
}

static void put_features(uint64_t offered)
{
	uint8_t choice = input_u8(input);

	if (choice & 0x80)
		put_u64(input_u64(input));
	else
		put_u64((choice & 0x40 ? input_u64(input) : UINT64_MAX) & offered);
}

/* Small numbers of pages: they touch, overlap and end where a file does. */
static struct vhost_user_region make_region(void)
{
	uint8_t choice = input_u8(input);
	struct vhost_user_region region = {
		.guest_address = (uint64_t)input_u8(input) << 12,
		.size = (uint64_t)(input_u8(input) % 18) << 12,
		.user_address = (uint64_t)input_u8(input) << 12,
		.mmap_offset = (uint64_t)(input_u8(input) % 17) << 12,
	};

	if (choice & 0x80 && known->n_regions > 0) {
		const struct session_region *old = &known->regions[choice % known->n_regions];

		region = (struct vhost_user_region){old->guest_address, old->size,
						    old->user_address, old->mmap_offset};
	}
	if (choice & 0x40)
		((uint64_t *)&region)[choice % 4] += input_u64(input);
	return region;
}

static void put_mem_table(void)
{
	struct vhost_user_memory memory = {.n_regions = input_u8(input)};

	if (memory.n_regions < 0xf0)
		memory.n_regions %= 5;
	else
		memory.n_regions -= 0xf0 - (VHOST_USER_REGIONS_MAX - 8);
	put(&memory, sizeof(memory));
	for (uint32_t i = 0; i < memory.n_regions && i < DRAFT_FDS_MAX - 1; i++) {
		struct vhost_user_region region = make_region();

		put(&region, sizeof(region));
		add_fd(FUZZ_FD_MEMORY);
	}
}

static uint32_t ring_index(void)
{
	uint8_t choice = input_u8(input);

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
		.flags = input_u8(input) % 3,
		.desc = (uint64_t)input_u16(input) << 4,
		.used = (uint64_t)input_u16(input) << 2,
		.avail = (uint64_t)input_u16(input) << 1,
		.log_guest_addr = input_u64(input),
	};

	if (addr.flags == 2)
		addr.desc |= input_u8(input), addr.flags = input_u32(input);
	put(&addr, sizeof(addr));
}

static void put_ring_fd(void)
{
	uint8_t choice = input_u8(input);

	put_u64(ring_index() | (choice & 1 ? VHOST_USER_VRING_NOFD : 0) |
		(choice & 0x80 ? FUTURE_BITS : 0));
	if (!(choice & 1) || choice & 0x40)
		add_fd(FUZZ_FD_EVENT);
}

static void put_config(void)
{
	struct vhost_user_config config = {input_u8(input) % 12, input_u8(input) % 12,
					   input_u8(input)};
	uint8_t bytes[VHOST_USER_CONFIG_MAX] = {0};

	if (config.flags & 0x80)
		config.offset = input_u32(input);
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
	struct vhost_user_log log = {(uint64_t)input_u8(input) << 8, (uint64_t)input_u8(input)
									     << 8};

	put(&log, sizeof(log));
	add_fd(FUZZ_FD_MEMORY);
}

static void put_device_state(void)
{
	struct vhost_user_device_state state = {input_u8(input) % 3, 0};

	put(&state, sizeof(state));
	add_fd(input_u8(input) & 1 ? FUZZ_FD_PIPE_READ : FUZZ_FD_UNIX);
}

static void put_payload(uint32_t request)
{
	switch (request) {
	case VHOST_USER_SET_FEATURES:
		put_features(SESSION_FEATURES);
		return;
	case VHOST_USER_SET_PROTOCOL_FEATURES:
		put_features(SESSION_PROTOCOL_FEATURES | SESSION_PROTOCOL_FEATURES_IN_BAND);
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
		put_state(input_u8(input) & 0x80 ? input_u32(input)
						 : UINT32_C(1) << input_u8(input) % 17);
		return;
	case VHOST_USER_SET_BACKEND_REQ_FD:
		add_fd(FUZZ_FD_UNIX);
		return;
	case VHOST_USER_SET_VRING_ENABLE:
	case VHOST_USER_VRING_KICK:
		put_state(input_u8(input) % 3);
		return;
	case VHOST_USER_SET_VRING_BASE:
	case VHOST_USER_GET_VRING_BASE:
		put_state(input_u32(input));
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
	struct vhost_user_header *header = &draft->message.header;
	size_t len = DRAFT_HEADER_SIZE + input_u8(input);

	header->request = input_u8(input);
	header->flags = input_u8(input);
	header->size = input_u16(input);
	input_copy(input, draft->message.payload, len - DRAFT_HEADER_SIZE);
	for (uint8_t n = input_u8(input) % 4; n > 0; n--)
		add_fd(FUZZ_FD_EVENT);
	return len;
}

static size_t make_message(uint8_t choice)
{
	struct vhost_user_header *header = &draft->message.header;

	header->request = requests[choice % (sizeof(requests) / sizeof(requests[0]))];
	header->flags = VHOST_USER_VERSION | (choice & 0x80 ? VHOST_USER_NEED_REPLY : 0);
	put_payload(header->request);
	choice = input_u8(input);
	if (choice == 1)
		header->size -= header->size > 0;
	if (choice == 2)
		put(&choice, sizeof(choice));
	if (choice == 3 || choice == 4)
		add_fd(FUZZ_FD_EVENT);
	for (uint8_t n = choice == 4 ? DRAFT_FDS_MAX - 1 : 0; draft->n_fds < n;)
		add_fd(FUZZ_FD_EVENT);
	return DRAFT_HEADER_SIZE + header->size;
}

void draft_make(struct draft *made, struct input *chosen_by, const struct session *told)
{
	uint8_t choice;

	draft = made;
	input = chosen_by;
	known = told;
	memset(&draft->message.header, 0, DRAFT_HEADER_SIZE);
	draft->n_fds = 0;
	choice = input_u8(input);
	draft->len = choice == 0xff ? make_anything() : make_message(choice);
}

static ssize_t send_part(const struct draft *made, int socket, size_t from, size_t to, bool has_fds)
{
	size_t n_fds = has_fds ? made->n_fds : 0;
	union {
		char bytes[CMSG_SPACE(sizeof(int) * DRAFT_FDS_MAX)];
		struct cmsghdr alignment;
	} control = {.bytes = {0}};
	uint8_t bytes[DRAFT_HEADER_SIZE + VHOST_USER_PAYLOAD_MAX];
	struct iovec iov = {bytes + from, to - from};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	memcpy(bytes, &made->message.header, DRAFT_HEADER_SIZE);
	memcpy(bytes + DRAFT_HEADER_SIZE, made->message.payload, VHOST_USER_PAYLOAD_MAX);
	if (n_fds > 0) {
		struct cmsghdr *cmsg;

		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(cmsg), made->fds, sizeof(int) * n_fds);
	}
	return sendmsg(socket, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void draft_send(const struct draft *made, int socket, size_t from, size_t to, bool has_fds)
{
	CLAIM(send_part(made, socket, from, to, has_fds) == (ssize_t)(to - from));
}

bool draft_offer(const struct draft *made, int socket)
{
	return send_part(made, socket, 0, made->len, true) == (ssize_t)made->len;
}

void draft_drop(struct draft *made)
{
	for (size_t i = 0; i < made->n_fds; i++)
		close(made->fds[i]);
}
