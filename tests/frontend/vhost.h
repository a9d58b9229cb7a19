/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The front-end's side of a vhost-user socket: sends messages, waits for the
 * answers that QEMU's document asks for and refuses what QEMU would refuse (a
 * reply whose flags are not exactly version 1 and reply, another request's
 * number, another size). The wire is defined here anew and not shared with
 * the product, so that a mistake there is not repeated here.
 *
 * Every call returns 0 on success, VHOST_E_NACK when the back-end answered that
 * it failed, and else negative errno: -ETIMEDOUT, -ECONNRESET (the back-end
 * closed), -EPROTO (an answer that breaks the protocol; vhost_error() says how).
 * The back-end's fds are the caller's once returned; fds that are sent stay
 * the caller's.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { VHOST_E_NACK = 1 };

enum vhost_request {
	VHOST_GET_FEATURES = 1,
	VHOST_SET_FEATURES = 2,
	VHOST_SET_OWNER = 3,
	VHOST_RESET_OWNER = 4,
	VHOST_SET_MEM_TABLE = 5,
	VHOST_SET_LOG_BASE = 6,
	VHOST_SET_LOG_FD = 7,
	VHOST_SET_VRING_NUM = 8,
	VHOST_SET_VRING_ADDR = 9,
	VHOST_SET_VRING_BASE = 10,
	VHOST_GET_VRING_BASE = 11,
	VHOST_SET_VRING_KICK = 12,
	VHOST_SET_VRING_CALL = 13,
	VHOST_SET_VRING_ERR = 14,
	VHOST_GET_PROTOCOL_FEATURES = 15,
	VHOST_SET_PROTOCOL_FEATURES = 16,
	VHOST_GET_QUEUE_NUM = 17,
	VHOST_SET_VRING_ENABLE = 18,
	VHOST_SET_BACKEND_REQ_FD = 21,
	VHOST_IOTLB_MSG = 22,
	VHOST_GET_CONFIG = 24,
	VHOST_SET_CONFIG = 25,
	VHOST_GET_INFLIGHT_FD = 31,
	VHOST_SET_INFLIGHT_FD = 32,
	VHOST_RESET_DEVICE = 34,
	VHOST_VRING_KICK = 35,
	VHOST_GET_MAX_MEM_SLOTS = 36,
	VHOST_ADD_MEM_REG = 37,
	VHOST_REM_MEM_REG = 38,
	VHOST_SET_STATUS = 39,
	VHOST_GET_STATUS = 40,
	VHOST_SET_DEVICE_STATE_FD = 42,
	VHOST_CHECK_DEVICE_STATE = 43,
};

/* Numbers of protocol feature bits. */
enum {
	VHOST_PROTOCOL_MQ = 0,
	VHOST_PROTOCOL_LOG_SHMFD = 1,
	VHOST_PROTOCOL_REPLY_ACK = 3,
	VHOST_PROTOCOL_BACKEND_REQ = 5,
	VHOST_PROTOCOL_CONFIG = 9,
	VHOST_PROTOCOL_INFLIGHT_SHMFD = 12,
	VHOST_PROTOCOL_RESET_DEVICE = 13,
	VHOST_PROTOCOL_INBAND_NOTIFICATIONS = 14,
	VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS = 15,
	VHOST_PROTOCOL_STATUS = 16,
	VHOST_PROTOCOL_DEVICE_STATE = 19,
};

/* Numbers of feature bits that a vhost-user-vsock front-end meets. */
enum {
	VIRTIO_STREAM = 0,
	VIRTIO_SEQPACKET = 1,
	VIRTIO_NO_IMPLIED_STREAM = 2,
	VIRTIO_LOG_ALL = 26,
	VIRTIO_INDIRECT = 28,
	VIRTIO_EVENT_IDX = 29,
	VIRTIO_PROTOCOL_FEATURES = 30,
	VIRTIO_VERSION_1 = 32,
	VIRTIO_RING_PACKED = 34,
	VIRTIO_IN_ORDER = 35,
	VIRTIO_NOTIFICATION_DATA = 38,
};

#define BIT64(n) (UINT64_C(1) << (n))

enum { VHOST_FLAG_VERSION = 0x1, VHOST_FLAG_REPLY = 0x4, VHOST_FLAG_NEED_REPLY = 0x8 };

#define VHOST_FDS_MAX	  32
#define VHOST_PAYLOAD_MAX 4096
#define VHOST_RING_NO_FD  UINT64_C(0x100)

/* The wire. Sizes without holes, checked in vhost.c. */
struct vhost_header {
	uint32_t request, flags, size;
};

struct vhost_region {
	uint64_t guest_address, size, user_address, mmap_offset;
};

struct vhost_ring_state {
	uint32_t index, num;
};

struct vhost_ring_address {
	uint32_t index, flags;
	uint64_t desc, used, avail, log;
};

struct vhost_config {
	uint32_t offset, size, flags;
	uint8_t bytes[256];
};

struct vhost {
	int fd;
	int timeout;	       /* of one wait, milliseconds */
	uint64_t ack_requests; /* bit n: set need_reply on request n once REPLY_ACK is negotiated */
	uint64_t offered_features, features;
	uint64_t offered_protocol_features, protocol_features;
	bool uses_state_sockets; /* writable: a socket in place of a pipe for a device state */
	char error[160];
};

/* Requests on which QEMU asks for a reply; cloud-hypervisor: all; crosvm: none. */
extern const uint64_t vhost_ack_like_qemu;

/*
 * Connect, waiting for the socket to appear. need_reply is set on all requests.
 * SIGPIPE is ignored from here on: the pipes of a state transfer may break.
 */
int vhost_connect(const char *path, int timeout, struct vhost *ret);
void vhost_close(struct vhost *vhost);

/* Why the last call failed, one line. */
const char *vhost_error(const struct vhost *vhost);

/* Was the protocol feature of this bit number negotiated? */
bool vhost_has(const struct vhost *vhost, unsigned int bit);

/* A message without an answer of its own; waits for the ack where one is due. */
int vhost_send(struct vhost *vhost, uint32_t request, const void *payload, size_t len,
	       const int *fds, size_t n_fds);

/*
 * A message with an answer of its own, of exactly reply_len bytes. With
 * ret_fd, one fd may come along (-1: none came); without it none may.
 */
int vhost_ask(struct vhost *vhost, uint32_t request, const void *payload, size_t len,
	      const int *fds, size_t n_fds, void *reply, size_t reply_len, int *ret_fd);

/* The messages by shape. vhost_set_u64() and _get_u64() remember (protocol) features. */
int vhost_order(struct vhost *vhost, uint32_t request); /* no payload */
int vhost_get_u64(struct vhost *vhost, uint32_t request, uint64_t *ret);
int vhost_set_u64(struct vhost *vhost, uint32_t request, uint64_t value);
int vhost_set_ring(struct vhost *vhost, uint32_t request, uint32_t index, uint32_t num);
int vhost_get_ring_base(struct vhost *vhost, uint32_t index, uint32_t *ret_base);
int vhost_set_ring_address(struct vhost *vhost, const struct vhost_ring_address *address);
int vhost_set_ring_fd(struct vhost *vhost, uint32_t request, uint32_t index, int fd); /* -1: none */
int vhost_set_memory(struct vhost *vhost, const struct vhost_region *regions, const int *fds,
		     size_t n_regions);
int vhost_change_memory(struct vhost *vhost, uint32_t request, const struct vhost_region *region,
			int fd); /* ADD_MEM_REG, or REM_MEM_REG with fd -1 */
int vhost_get_config(struct vhost *vhost, uint32_t offset, uint32_t size, uint32_t flags,
		     void *ret_bytes);
int vhost_set_config(struct vhost *vhost, uint32_t offset, uint32_t size, uint32_t flags,
		     const void *bytes);
int vhost_set_log(struct vhost *vhost, uint64_t size, uint64_t offset, int fd);

/*
 * Device state through a pipe, with SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE.
 * Save: ret_len bytes were written to state. A state that does not fit is -E2BIG.
 */
int vhost_save(struct vhost *vhost, void *state, size_t size, size_t *ret_len);
int vhost_load(struct vhost *vhost, const void *state, size_t len);

/* For hostile tests: any bytes, the fds with the first of them. Waits for no answer. */
int vhost_send_raw(struct vhost *vhost, const void *bytes, size_t len, const int *fds,
		   size_t n_fds);

/* Wait for one reply to request; its payload length, at most size, or negative errno. */
int vhost_receive(struct vhost *vhost, uint32_t request, void *payload, size_t size, int *ret_fd);

/* Wait until the back-end closed the connection; data before that is dropped. */
int vhost_wait_closed(struct vhost *vhost);
