/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/frontend/mock.h"

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/frontend/packet.h"
#include "tests/frontend/ring.h"
#include "tests/frontend/socket.h"
#include "tests/frontend/vhost.h"

#define RINGS	    3
#define CONNECTIONS 16
#define BUFFER	    (64u * 1024)
#define CONTROLS    256

enum { RX, TX, EVENT };

struct mock_region {
	struct vhost_region wire;
	uint8_t *bytes;
	void *mapping;
	size_t mapping_len;
};

struct mock_ring {
	uint32_t size;
	struct vhost_ring_address address;
	uint16_t next; /* of the available ring */
	uint16_t called;
	int kick, call;
	bool is_started, is_enabled;
};

struct mock_connection {
	uint32_t port, guest_port; /* port 0: free */
	uint32_t tx_cnt, fwd_cnt, guest_buf_alloc, guest_fwd_cnt;
	uint8_t bytes[BUFFER];
	uint32_t n_bytes;
	bool is_established, is_ending; /* the guest sends no more */
};

static struct mock {
	int fd;
	uint64_t features;
	struct mock_region regions[MEMORY_REGIONS_MAX];
	size_t n_regions;
	struct mock_ring rings[RINGS];
	struct mock_connection connections[CONNECTIONS];
	struct packet controls[CONTROLS];
	size_t n_controls;
	bool has_reset_pending, is_silent, lies_about_length;
} mock;

/* Stops the process as an assertion would: the test sees the socket close. */
static void check(bool is_true)
{
	if (!is_true)
		_exit(1);
}

/* Guest (or, with is_user, user) address to pointer; ret_len: bytes left in the region. */
static uint8_t *translate(uint64_t address, bool is_user, uint64_t *ret_len)
{
	for (size_t i = 0; i < mock.n_regions; i++) {
		const struct vhost_region *wire = &mock.regions[i].wire;
		uint64_t start = is_user ? wire->user_address : wire->guest_address;

		if (address < start || address - start >= wire->size)
			continue;
		*ret_len = wire->size - (address - start);
		return mock.regions[i].bytes + (address - start);
	}
	check(false);
	return NULL;
}

static void copy(uint64_t address, void *bytes, uint32_t len, bool is_write)
{
	while (len > 0) {
		uint64_t left;
		uint8_t *at = translate(address, false, &left);
		uint32_t part = left < len ? (uint32_t)left : len;

		memcpy(is_write ? at : bytes, is_write ? bytes : at, part);
		address += part;
		bytes = (uint8_t *)bytes + part;
		len -= part;
	}
}

static uint16_t *table(uint64_t user_address)
{
	uint64_t left;

	return (uint16_t *)translate(user_address, true, &left);
}

static bool is_running(const struct mock_ring *ring)
{
	return ring->is_started && ring->is_enabled;
}

static bool has_chain(const struct mock_ring *ring)
{
	return __atomic_load_n(&table(ring->address.avail)[1], __ATOMIC_ACQUIRE) != ring->next;
}

/* Copy between a chain and bytes; returns how many. */
static uint32_t move_chain(const struct mock_ring *ring, uint16_t head, uint8_t *bytes,
			   uint32_t len, bool is_write)
{
	struct ring_descriptor *descriptors = (struct ring_descriptor *)table(ring->address.desc);
	struct ring_descriptor indirect[256], at = descriptors[head];
	uint32_t n_moved = 0;

	if (at.flags & RING_DESCRIPTOR_INDIRECT) {
		check(at.len <= sizeof(indirect));
		copy(at.address, indirect, at.len, false);
		descriptors = indirect;
		at = indirect[0];
	}
	for (;;) {
		uint32_t part = at.len < len - n_moved ? at.len : len - n_moved;

		check(!(at.flags & RING_DESCRIPTOR_WRITE) == !is_write);
		copy(at.address, bytes + n_moved, part, is_write);
		n_moved += part;
		if (!(at.flags & RING_DESCRIPTOR_NEXT))
			return n_moved;
		at = descriptors[at.next];
	}
}

static uint16_t take_head(struct mock_ring *ring)
{
	return table(ring->address.avail)[2 + (ring->next++ & (ring->size - 1))];
}

static void give_back(struct mock_ring *ring, uint16_t head, uint32_t len)
{
	uint16_t *used = table(ring->address.used);
	struct ring_used *entries = (struct ring_used *)(used + 2);

	entries[used[1] & (ring->size - 1)] = (struct ring_used){.id = head, .len = len};
	__atomic_store_n(&used[1], (uint16_t)(used[1] + 1), __ATOMIC_RELEASE);
	used[2 + 4 * ring->size] = ring->next; /* avail_event: the next chain is worth a kick */
}

static void call(struct mock_ring *ring)
{
	const uint16_t *avail = table(ring->address.avail);
	uint16_t idx = table(ring->address.used)[1], old = ring->called;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	ring->called = idx;
	if (old == idx || mock.is_silent)
		return;
	if (mock.features & BIT64(VIRTIO_EVENT_IDX)
		    ? (uint16_t)(idx - avail[2 + ring->size] - 1) < (uint16_t)(idx - old)
		    : !(avail[0] & 1))
		eventfd_write(ring->call, 1);
}

static void queue_control(uint32_t port, uint32_t guest_port, enum packet_op op, uint32_t flags,
			  uint32_t fwd_cnt)
{
	check(mock.n_controls < CONTROLS);
	mock.controls[mock.n_controls++] = (struct packet){
		.src_cid = port == MOCK_WRONG_CID ? 9 : PACKET_HOST_CID,
		.dst_cid = MOCK_CID,
		.src_port = port,
		.dst_port = guest_port,
		.type = PACKET_STREAM,
		.op = (uint16_t)op,
		.flags = flags,
		.buf_alloc = BUFFER,
		.fwd_cnt = fwd_cnt,
	};
}

static struct mock_connection *find(uint32_t port, uint32_t guest_port)
{
	for (size_t i = 0; i < CONNECTIONS; i++) {
		struct mock_connection *at = &mock.connections[i];

		if (at->port == port && at->guest_port == guest_port)
			return at;
	}
	return NULL;
}

static void on_request(const struct packet *packet)
{
	uint32_t port = packet->dst_port;
	struct mock_connection *connection = find(0, 0);

	mock.has_reset_pending |= port == MOCK_RESET_TRANSPORT;
	mock.is_silent |= port == MOCK_SILENT;
	if (port == MOCK_RESET_TRANSPORT)
		return;
	if (!connection || port < MOCK_ECHO || port > MOCK_WRONG_CID) {
		queue_control(port, packet->src_port, PACKET_RST, 0, 0);
		return;
	}
	*connection = (struct mock_connection){.port = port,
					       .guest_port = packet->src_port,
					       .guest_buf_alloc = packet->buf_alloc,
					       .is_established = true};
	queue_control(port, packet->src_port, PACKET_RESPONSE, 0, 0);
	if (port == MOCK_RESPOND_TWICE)
		queue_control(port, packet->src_port, PACKET_RESPONSE, 0, 0);
	mock.lies_about_length |= port == MOCK_WRONG_USED_LENGTH;
	if (port == MOCK_OVERRUN) {
		connection->n_bytes = BUFFER;
		connection->guest_buf_alloc += BUFFER;
	}
	if (port == MOCK_CONNECT_BACK && (connection = find(0, 0))) {
		*connection = (struct mock_connection){.port = 99, .guest_port = port};
		queue_control(99, port, PACKET_REQUEST, 0, 0);
	}
}

static void forget(struct mock_connection *connection)
{
	connection->port = connection->guest_port = 0;
}

static void on_packet(const struct packet *packet, const uint8_t *payload)
{
	struct mock_connection *connection = find(packet->dst_port, packet->src_port);

	if (!connection && packet->op == PACKET_REQUEST)
		on_request(packet);
	else if (!connection && packet->op != PACKET_RST)
		queue_control(packet->dst_port, packet->src_port, PACKET_RST, 0, 0);
	if (!connection)
		return;
	if (packet->dst_port != MOCK_OVERRUN)
		connection->guest_buf_alloc = packet->buf_alloc;
	connection->guest_fwd_cnt = packet->fwd_cnt;
	if (packet->op == PACKET_RESPONSE)
		connection->is_established = true;
	if (packet->op == PACKET_RST)
		forget(connection);
	if (packet->op == PACKET_RW) {
		check(packet->len <= BUFFER - connection->n_bytes);
		memcpy(connection->bytes + connection->n_bytes, payload, packet->len);
		connection->n_bytes += packet->len;
	}
	if (packet->op == PACKET_CREDIT_REQUEST)
		queue_control(packet->dst_port, packet->src_port, PACKET_CREDIT_UPDATE, 0,
			      connection->fwd_cnt);
	if (packet->op != PACKET_SHUTDOWN)
		return;
	connection->is_ending |= packet->flags & PACKET_SHUTDOWN_SEND;
	if (packet->flags == PACKET_SHUTDOWN_BOTH) {
		queue_control(packet->dst_port, packet->src_port, PACKET_RST, 0, 0);
		forget(connection);
	}
}

static void take_tx(struct mock_ring *ring)
{
	static uint8_t bytes[PACKET_HEADER_LEN + PACKET_PAYLOAD_MAX];

	while (is_running(ring) && has_chain(ring)) {
		uint16_t head = take_head(ring);
		struct packet packet = {0};

		check(move_chain(ring, head, bytes, sizeof(bytes), false) >= PACKET_HEADER_LEN);
		memcpy(&packet, bytes, PACKET_HEADER_LEN);
		check(packet.src_cid == MOCK_CID);
		on_packet(&packet, bytes + PACKET_HEADER_LEN);
		give_back(ring, head, 0);
	}
	if (is_running(ring))
		call(ring);
}

static void send_rx(struct mock_ring *ring, struct packet *packet, const uint8_t *payload)
{
	uint8_t bytes[PACKET_HEADER_LEN + 2048];
	uint16_t head = take_head(ring);
	uint32_t len;

	memcpy(bytes, packet, PACKET_HEADER_LEN);
	if (packet->len > 0)
		memcpy(bytes + PACKET_HEADER_LEN, payload, packet->len);
	len = move_chain(ring, head, bytes, PACKET_HEADER_LEN + packet->len, true);
	check(len == PACKET_HEADER_LEN + packet->len);
	give_back(ring, head, len - mock.lies_about_length);
}

static bool echo(struct mock_ring *ring, struct mock_connection *connection)
{
	uint32_t credit =
		connection->guest_buf_alloc - (connection->tx_cnt - connection->guest_fwd_cnt);
	uint32_t len = connection->n_bytes < 2048 ? connection->n_bytes : 2048;

	if (len > credit)
		len = credit;
	if (!connection->port || !connection->is_established)
		return false;
	if (len > 0) {
		queue_control(connection->port, connection->guest_port, PACKET_RW, 0,
			      connection->fwd_cnt + len);
		mock.controls[--mock.n_controls].len = len;
		send_rx(ring, &mock.controls[mock.n_controls], connection->bytes);
		connection->n_bytes -= len;
		memmove(connection->bytes, connection->bytes + len, connection->n_bytes);
		connection->tx_cnt += len;
		connection->fwd_cnt += len;
	} else if (connection->is_ending && connection->n_bytes == 0) {
		connection->is_ending = false;
		queue_control(connection->port, connection->guest_port, PACKET_SHUTDOWN,
			      PACKET_SHUTDOWN_SEND, connection->fwd_cnt);
	}
	return len > 0;
}

static void fill_rx(struct mock_ring *ring)
{
	bool is_moving = true;

	while (is_moving && is_running(ring) && has_chain(ring)) {
		is_moving = mock.n_controls > 0;
		if (is_moving) {
			send_rx(ring, &mock.controls[0], NULL);
			memmove(mock.controls, mock.controls + 1,
				--mock.n_controls * sizeof(*mock.controls));
			continue;
		}
		for (size_t i = 0; i < CONNECTIONS && has_chain(ring); i++)
			is_moving |= echo(ring, &mock.connections[i]);
		is_moving |= mock.n_controls > 0;
	}
	if (is_running(ring))
		call(ring);
}

static void work(void)
{
	struct mock_ring *event = &mock.rings[EVENT];

	take_tx(&mock.rings[TX]);
	fill_rx(&mock.rings[RX]);
	if (mock.has_reset_pending && is_running(event) && has_chain(event)) {
		uint32_t reset = 0;
		uint16_t head = take_head(event);

		mock.has_reset_pending = false;
		memset(mock.connections, 0, sizeof(mock.connections));
		give_back(event, head, move_chain(event, head, (uint8_t *)&reset, 4, true));
		call(event);
	}
}

static void add_region(const struct vhost_region *wire, int fd)
{
	struct mock_region *region = &mock.regions[mock.n_regions++];
	size_t len = wire->mmap_offset + wire->size;

	*region = (struct mock_region){.wire = *wire, .mapping_len = len};
	region->mapping = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(region->mapping != MAP_FAILED);
	region->bytes = (uint8_t *)region->mapping + wire->mmap_offset;
}

static void drop_regions(void)
{
	while (mock.n_regions > 0) {
		mock.n_regions--;
		munmap(mock.regions[mock.n_regions].mapping,
		       mock.regions[mock.n_regions].mapping_len);
	}
}

static void reply(uint32_t request, const void *payload, uint32_t len)
{
	struct vhost_header header = {.request = request, .flags = 0x5, .size = len};
	struct iovec parts[] = {{&header, sizeof(header)}, {(void *)(uintptr_t)payload, len}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

	check(sendmsg(mock.fd, &message, MSG_NOSIGNAL) == (ssize_t)(sizeof(header) + len));
}

static void reply_u64(uint32_t request, uint64_t value)
{
	reply(request, &value, sizeof(value));
}

static void keep_fd(int *at, int *fd)
{
	if (*at >= 0)
		close(*at);
	*at = *fd;
	*fd = -1;
}

/* The state of this device is one word; loading checks it. */
static void transfer_state(uint32_t is_load, int fd)
{
	uint32_t word = MOCK_CID;

	if (!is_load)
		check(write(fd, &word, sizeof(word)) == sizeof(word));
	reply_u64(VHOST_SET_DEVICE_STATE_FD, 0x100);
	if (is_load)
		check(socket_wait(fd, POLLIN, deadline_in(SOCKET_TIMEOUT)) == 0 &&
		      read(fd, &word, sizeof(word)) == sizeof(word));
	close(fd);
}

union payload {
	uint64_t u64;
	uint32_t words[2];
	struct vhost_ring_state state;
	struct vhost_ring_address address;
	struct vhost_config config;
	struct {
		uint64_t head;
		struct vhost_region regions[MEMORY_REGIONS_MAX];
	} memory;
};

/* True if the message had a reply of its own. */
static bool handle_query(uint32_t request, union payload *in, uint32_t len)
{
	uint64_t cid = MOCK_CID;

	switch (request) {
	case VHOST_GET_FEATURES:
		reply_u64(request, BIT64(VIRTIO_VERSION_1) | BIT64(VIRTIO_EVENT_IDX) |
					   BIT64(VIRTIO_INDIRECT) |
					   BIT64(VIRTIO_PROTOCOL_FEATURES));
		return true;
	case VHOST_GET_PROTOCOL_FEATURES:
		reply_u64(request, BIT64(VHOST_PROTOCOL_MQ) | BIT64(VHOST_PROTOCOL_REPLY_ACK) |
					   BIT64(VHOST_PROTOCOL_CONFIG) |
					   BIT64(VHOST_PROTOCOL_RESET_DEVICE) |
					   BIT64(VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS) |
					   BIT64(VHOST_PROTOCOL_DEVICE_STATE));
		return true;
	case VHOST_GET_QUEUE_NUM:
		reply_u64(request, RINGS);
		return true;
	case VHOST_GET_MAX_MEM_SLOTS:
		reply_u64(request, MEMORY_REGIONS_MAX);
		return true;
	case VHOST_CHECK_DEVICE_STATE:
		reply_u64(request, 0);
		return true;
	case VHOST_GET_CONFIG:
		check(in->config.offset + in->config.size <= 8);
		memcpy(in->config.bytes, (uint8_t *)&cid + in->config.offset, in->config.size);
		reply(request, in, len);
		return true;
	case VHOST_GET_VRING_BASE:
		mock.rings[in->state.index].is_started = false;
		in->state.num = mock.rings[in->state.index].next;
		reply(request, in, len);
		return true;
	default:
		return false;
	}
}

static void handle_ring(uint32_t request, const union payload *in, int *fd)
{
	struct mock_ring *ring = &mock.rings[in->state.index & 3];

	if (request == VHOST_SET_VRING_NUM)
		ring->size = in->state.num;
	if (request == VHOST_SET_VRING_ADDR)
		ring->address = in->address;
	if (request == VHOST_SET_VRING_BASE)
		ring->next = (uint16_t)in->state.num;
	if (request == VHOST_SET_VRING_CALL)
		keep_fd(&ring->call, fd);
	if (request == VHOST_SET_VRING_ENABLE)
		ring->is_enabled = in->state.num;
	if (request == VHOST_SET_VRING_KICK) {
		keep_fd(&ring->kick, fd);
		ring->is_started = true;
		ring->called = table(ring->address.used)[1];
	}
}

static void handle_order(uint32_t request, const union payload *in, int *fds)
{
	switch (request) {
	case VHOST_SET_FEATURES:
		mock.features = in->u64;
		break;
	case VHOST_SET_MEM_TABLE:
		drop_regions();
		for (uint32_t i = 0; i < in->words[0]; i++)
			add_region(&in->memory.regions[i], fds[i]);
		break;
	case VHOST_ADD_MEM_REG:
		add_region(&in->memory.regions[0], fds[0]);
		break;
	case VHOST_RESET_DEVICE:
		memset(mock.connections, 0, sizeof(mock.connections));
		mock.n_controls = 0;
		break;
	default:
		handle_ring(request, in, &fds[0]);
	}
}

static bool handle_message(void)
{
	union {
		char bytes[CMSG_SPACE(VHOST_FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	int fds[VHOST_FDS_MAX];
	struct vhost_header header;
	union payload in = {0};
	struct iovec part = {&header, sizeof(header)};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control.bytes,
				 .msg_controllen = sizeof(control)};
	struct cmsghdr *cmsg;

	memset(fds, -1, sizeof(fds));
	if (recvmsg(mock.fd, &message, MSG_WAITALL) != sizeof(header))
		return false;
	cmsg = CMSG_FIRSTHDR(&message);
	if (cmsg)
		memcpy(fds, CMSG_DATA(cmsg), cmsg->cmsg_len - CMSG_LEN(0));
	check(header.size <= sizeof(in));
	if (header.size > 0 && recv(mock.fd, &in, header.size, MSG_WAITALL) != header.size)
		return false;
	if (header.request == VHOST_SET_DEVICE_STATE_FD) {
		transfer_state(in.words[0], fds[0]);
		return true;
	}
	if (handle_query(header.request, &in, header.size))
		return true;
	handle_order(header.request, &in, fds);
	for (size_t i = 0; i < VHOST_FDS_MAX; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	if (header.flags & VHOST_FLAG_NEED_REPLY)
		reply_u64(header.request, 0);
	return true;
}

static void serve(int fd)
{
	bool is_open = true;

	memset(&mock, 0, sizeof(mock));
	mock.fd = fd;
	for (size_t i = 0; i < RINGS; i++)
		mock.rings[i].kick = mock.rings[i].call = -1;
	while (is_open) {
		struct pollfd fds[RINGS + 1] = {{.fd = fd, .events = POLLIN}};
		eventfd_t count;

		for (size_t i = 0; i < RINGS; i++)
			fds[1 + i] = (struct pollfd){.fd = mock.rings[i].kick, .events = POLLIN};
		check(poll(fds, RINGS + 1, -1) > 0);
		for (size_t i = 0; i < RINGS; i++) {
			if (fds[1 + i].revents)
				eventfd_read(mock.rings[i].kick, &count);
		}
		if (fds[0].revents)
			is_open = handle_message();
		work();
	}
	for (size_t i = 0; i < RINGS; i++) {
		close(mock.rings[i].kick);
		close(mock.rings[i].call);
	}
	drop_regions();
	close(fd);
}

pid_t mock_start(const char *path)
{
	int listener = socket_listen(path, SOCK_STREAM);
	pid_t parent = getpid(), pid;

	if (listener < 0)
		return -1;
	pid = fork();
	if (pid != 0) {
		close(listener);
		return pid;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	check(getppid() == parent);
	for (;;) {
		check(socket_wait(listener, POLLIN, deadline_in(60000)) == 0);
		serve(accept(listener, NULL, NULL));
	}
}
