/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * vhost-user on the wire, as far as this device speaks it, and the table of the
 * messages it takes: payload size, number of fds, whether a reply of its own
 * follows, what has to be negotiated before. Numbers are in the host's byte
 * order. Names and layouts are those of QEMU's vhost-user document ("Header",
 * "Payload", "Front-end message types"). Used by the front; keeps no state,
 * owns no fd.
 */

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	VHOST_USER_GET_FEATURES = 1,
	VHOST_USER_SET_FEATURES = 2,
	VHOST_USER_SET_OWNER = 3,
	VHOST_USER_RESET_OWNER = 4,
	VHOST_USER_SET_MEM_TABLE = 5,
	VHOST_USER_SET_LOG_BASE = 6,
	VHOST_USER_SET_LOG_FD = 7,
	VHOST_USER_SET_VRING_NUM = 8,
	VHOST_USER_SET_VRING_ADDR = 9,
	VHOST_USER_SET_VRING_BASE = 10,
	VHOST_USER_GET_VRING_BASE = 11,
	VHOST_USER_SET_VRING_KICK = 12,
	VHOST_USER_SET_VRING_CALL = 13,
	VHOST_USER_SET_VRING_ERR = 14,
	VHOST_USER_GET_PROTOCOL_FEATURES = 15,
	VHOST_USER_SET_PROTOCOL_FEATURES = 16,
	VHOST_USER_GET_QUEUE_NUM = 17,
	VHOST_USER_SET_VRING_ENABLE = 18,
	VHOST_USER_SET_BACKEND_REQ_FD = 21,
	VHOST_USER_GET_CONFIG = 24,
	VHOST_USER_SET_CONFIG = 25,
	VHOST_USER_RESET_DEVICE = 34,
	VHOST_USER_VRING_KICK = 35,
	VHOST_USER_GET_MAX_MEM_SLOTS = 36,
	VHOST_USER_ADD_MEM_REG = 37,
	VHOST_USER_REM_MEM_REG = 38,
	VHOST_USER_SET_DEVICE_STATE_FD = 42,
	VHOST_USER_CHECK_DEVICE_STATE = 43,
	/*
	 * No message of the document: SUSPEND and RESUME as they were proposed in 2023, under
	 * numbers that nobody else uses. Libraries and VMMs have private ones from 80 and
	 * from 1000 on.
	 */
	VHOST_USER_SUSPEND = 200,
	VHOST_USER_RESUME = 201,
};

/* "Back-end message types": to the front-end, through the socket of SET_BACKEND_REQ_FD. */
enum {
	VHOST_USER_BACKEND_VRING_CALL = 4,
	VHOST_USER_BACKEND_VRING_ERR = 5,
};

/* Header flags. QEMU takes a reply only when its flags are exactly these. */
#define VHOST_USER_VERSION_MASK UINT32_C(0x3)
#define VHOST_USER_VERSION	UINT32_C(0x1)
#define VHOST_USER_REPLY	UINT32_C(0x4)
#define VHOST_USER_NEED_REPLY	UINT32_C(0x8)
#define VHOST_USER_FLAGS_KNOWN	UINT32_C(0xf)
#define VHOST_USER_REPLY_FLAGS	(VHOST_USER_VERSION | VHOST_USER_REPLY)

/* Virtio feature bits. */
#define VIRTIO_VSOCK_F_STREAM		 (UINT64_C(1) << 0)
#define VIRTIO_VSOCK_F_SEQPACKET	 (UINT64_C(1) << 1)
#define VIRTIO_VSOCK_F_NO_IMPLIED_STREAM (UINT64_C(1) << 2)
#define VHOST_F_LOG_ALL			 (UINT64_C(1) << 26)
#define VIRTIO_RING_F_INDIRECT_DESC	 (UINT64_C(1) << 28)
#define VIRTIO_RING_F_EVENT_IDX		 (UINT64_C(1) << 29)
#define VHOST_USER_F_PROTOCOL_FEATURES	 (UINT64_C(1) << 30)
#define VIRTIO_F_VERSION_1		 (UINT64_C(1) << 32)
#define VIRTIO_F_RING_PACKED		 (UINT64_C(1) << 34)
#define VIRTIO_F_IN_ORDER		 (UINT64_C(1) << 35)
#define VIRTIO_F_NOTIFICATION_DATA	 (UINT64_C(1) << 38)

/* Protocol feature bits. */
#define VHOST_USER_PROTOCOL_F_MQ		   (UINT64_C(1) << 0)
#define VHOST_USER_PROTOCOL_F_LOG_SHMFD		   (UINT64_C(1) << 1)
#define VHOST_USER_PROTOCOL_F_REPLY_ACK		   (UINT64_C(1) << 3)
#define VHOST_USER_PROTOCOL_F_BACKEND_REQ	   (UINT64_C(1) << 5)
#define VHOST_USER_PROTOCOL_F_CONFIG		   (UINT64_C(1) << 9)
#define VHOST_USER_PROTOCOL_F_RESET_DEVICE	   (UINT64_C(1) << 13)
#define VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS (UINT64_C(1) << 14)
#define VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS  (UINT64_C(1) << 15)
#define VHOST_USER_PROTOCOL_F_DEVICE_STATE	   (UINT64_C(1) << 19)
#define VHOST_USER_PROTOCOL_F_GPA_ADDRESSES	   (UINT64_C(1) << 21)
/* Private, like the numbers of the two messages; the document is far from this bit. */
#define VHOST_USER_PROTOCOL_F_SUSPEND (UINT64_C(1) << 56)

/*
 * The longest payload that is read; rust-vmm and crosvm have the same bound. The
 * longest message taken, 32 regions, needs 1032 bytes.
 */
#define VHOST_USER_PAYLOAD_MAX 4096
/* crosvm and rust-vmm send up to 32 regions in one SET_MEM_TABLE, QEMU up to 8. */
#define VHOST_USER_REGIONS_MAX 32
#define VHOST_USER_FDS_MAX     VHOST_USER_REGIONS_MAX
/* Bytes of configuration space in one message: QEMU's and libvhost-user's bound. */
#define VHOST_USER_CONFIG_MAX 256
#define VHOST_USER_REASON_MAX 192

struct vhost_user_header {
	uint32_t request;
	uint32_t flags;
	uint32_t size; /* of the payload */
};
static_assert(sizeof(struct vhost_user_header) == 12, "header");

struct vhost_user_vring_state {
	uint32_t index;
	uint32_t num;
};
static_assert(sizeof(struct vhost_user_vring_state) == 8, "vring state");

#define VHOST_USER_VRING_F_LOG UINT32_C(0x1)

struct vhost_user_vring_addr {
	uint32_t index;
	uint32_t flags;
	uint64_t desc; /* front-end user addresses, these three */
	uint64_t used;
	uint64_t avail;
	uint64_t log_guest_addr;
};
static_assert(sizeof(struct vhost_user_vring_addr) == 40, "vring addr");

/* The u64 of SET_VRING_KICK, CALL and ERR. */
#define VHOST_USER_VRING_INDEX_MASK UINT64_C(0xff)
#define VHOST_USER_VRING_NOFD	    UINT64_C(0x100)

struct vhost_user_region {
	uint64_t guest_address;
	uint64_t size;
	uint64_t user_address;
	uint64_t mmap_offset;
};
static_assert(sizeof(struct vhost_user_region) == 32, "region");

/* SET_MEM_TABLE: n_regions regions follow, fd i belongs to region i. */
struct vhost_user_memory {
	uint32_t n_regions;
	uint32_t padding;
};
static_assert(sizeof(struct vhost_user_memory) == 8, "memory");

struct vhost_user_single_region {
	uint64_t padding;
	struct vhost_user_region region;
};
static_assert(sizeof(struct vhost_user_single_region) == 40, "single region");

struct vhost_user_log {
	uint64_t size;
	uint64_t mmap_offset;
};
static_assert(sizeof(struct vhost_user_log) == 16, "log");

#define VHOST_USER_STATE_SAVE	 UINT32_C(0)
#define VHOST_USER_STATE_LOAD	 UINT32_C(1)
#define VHOST_USER_STATE_STOPPED UINT32_C(0)

struct vhost_user_device_state {
	uint32_t direction;
	uint32_t phase;
};
static_assert(sizeof(struct vhost_user_device_state) == 8, "device state");

/* GET_CONFIG and SET_CONFIG: size bytes follow, in the request of GET too. */
struct vhost_user_config {
	uint32_t offset;
	uint32_t size;
	uint32_t flags;
};
static_assert(sizeof(struct vhost_user_config) == 12, "config");

/* In memory only: on the wire the payload follows the header without a gap. */
struct vhost_user_message {
	struct vhost_user_header header;
	_Alignas(8) uint8_t payload[VHOST_USER_PAYLOAD_MAX];
};

/* The longest reply: GET_CONFIG's, which is as long as its request. */
#define VHOST_USER_REPLY_MAX                                                                       \
	(sizeof(struct vhost_user_header) + sizeof(struct vhost_user_config) +                     \
	 VHOST_USER_CONFIG_MAX)

struct vhost_user_rule {
	const char *name; /* as in the document, without VHOST_USER_ */
	uint32_t payload_min, payload_max;
	uint32_t fds_min, fds_max;
	bool has_reply;	   /* of its own, so never the u64 of REPLY_ACK */
	uint64_t requires; /* protocol features, all of them; 0: none */
};

/* NULL: not a message that this device takes. */
const struct vhost_user_rule *vhost_user_rule(uint32_t request);

/*
 * Whether a message came with the size and the number of fds that its contents
 * call for, and may come at all with the protocol features that were negotiated.
 * Indices, addresses and the fds themselves are not looked at. 0, or -EPROTO
 * with one line in ret_reason.
 */
int vhost_user_check(const struct vhost_user_message *message, size_t n_fds,
		     uint64_t protocol_features, char ret_reason[static VHOST_USER_REASON_MAX]);
