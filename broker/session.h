/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The vhost-user session of one device: what the front-end has said so far,
 * and what follows from it. Pure state: no socket, no clock, no worker, no log;
 * it inspects the fds it is given (statx, F_GET_SEALS) and otherwise only keeps
 * and closes them. It is the one truth about the device: a replacement worker
 * is set up from it alone.
 *
 * One message at a time: an operation that needs the worker's answer returns
 * SESSION_E_PENDING, and the next message is given to the session only after
 * session_complete(). QEMU's vhost-user document, "Ring states" and "Front-end
 * message types".
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/vhost_user.h"

#define SESSION_RINGS	      3			     /* rx, tx, event */
#define SESSION_REGIONS_MAX   VHOST_USER_REGIONS_MAX /* what GET_MAX_MEM_SLOTS answers */
#define SESSION_RING_SIZE_MAX 32768
#define SESSION_CONFIG_SIZE   8 /* struct virtio_vsock_config: guest_cid alone */

/*
 * What a device offers unless it has a reason not to. QEMU demands CONFIG, and MQ
 * is how crosvm learns that there are three queues. What a driver adds to a
 * notification (NOTIFICATION_DATA) stays with the front-end: a kick is a kick.
 * RING_RESET is not offered: no message tells of it, and QEMU then would go on
 * with a ring that this device still holds.
 */
#define SESSION_FEATURES                                                                           \
	(VIRTIO_VSOCK_F_STREAM | VIRTIO_VSOCK_F_SEQPACKET | VIRTIO_VSOCK_F_NO_IMPLIED_STREAM |     \
	 VIRTIO_F_VERSION_1 | VIRTIO_RING_F_EVENT_IDX | VIRTIO_RING_F_INDIRECT_DESC |              \
	 VIRTIO_F_RING_PACKED | VIRTIO_F_IN_ORDER | VIRTIO_F_NOTIFICATION_DATA | VHOST_F_LOG_ALL | \
	 VHOST_USER_F_PROTOCOL_FEATURES)
#define SESSION_PROTOCOL_FEATURES                                                                  \
	(VHOST_USER_PROTOCOL_F_MQ | VHOST_USER_PROTOCOL_F_REPLY_ACK |                              \
	 VHOST_USER_PROTOCOL_F_CONFIG | VHOST_USER_PROTOCOL_F_RESET_DEVICE |                       \
	 VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS | VHOST_USER_PROTOCOL_F_LOG_SHMFD |             \
	 VHOST_USER_PROTOCOL_F_DEVICE_STATE)

/* What --offer inband-notifications adds: the one needs the other, and REPLY_ACK. */
#define SESSION_PROTOCOL_FEATURES_IN_BAND                                                          \
	(VHOST_USER_PROTOCOL_F_BACKEND_REQ | VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)

enum {
	SESSION_E_PENDING = 1, /* session_complete() will be called */
	SESSION_E_CLOSE = 2,   /* close the session; session_reason() says why */
};

struct session_region {
	uint64_t guest_address;
	uint64_t size;
	uint64_t user_address;
	uint64_t mmap_offset;
	uint64_t alignment; /* page size of the file, a power of two: stx_blksize, at least 4096 */
	bool is_sealed;	    /* F_SEAL_SHRINK: the front-end cannot truncate it */
	int fd;		    /* owned by the session */
};

enum session_ring_fd {
	SESSION_KICK,
	SESSION_CALL,
	SESSION_ERR,
	SESSION_RING_FDS,
};

struct session_ring {
	bool is_started;
	bool is_enabled;
	bool has_addresses;
	uint32_t num;
	/*
	 * Front-end user addresses, with GPA_ADDRESSES the guest's; of a packed ring:
	 * descriptors, device's and driver's event.
	 */
	uint64_t desc, used, avail;
	bool is_logged;		   /* VHOST_VRING_F_LOG: writes to the ring itself are logged; */
	uint64_t log_address;	   /* those to `used` from this guest address on */
	uint32_t base;		   /* where to go on: as set, or as last returned */
	int fds[SESSION_RING_FDS]; /* owned by the session; -1: polled or not given */
	bool is_polled[SESSION_RING_FDS]; /* the front-end said that there is no fd */
};

/* The dirty log of a migration. */
struct session_log {
	uint64_t size, mmap_offset, alignment;
	int fd;	      /* owned by the session; -1: none was given */
	int event_fd; /* the same; signalled when something was logged */
};

struct session {
	uint64_t guest_cid;
	/* VHOST_USER_F_PROTOCOL_FEATURES included. */
	uint64_t offered_features, features;
	uint64_t offered_protocol_features, protocol_features;
	bool has_features; /* SET_FEATURES was seen */
	bool is_suspended; /* SUSPEND: rings that are started are left alone */
	/* In the order of guest_address. */
	struct session_region regions[SESSION_REGIONS_MAX];
	size_t n_regions;
	struct session_ring rings[SESSION_RINGS];
	struct session_log log;
	int state_fd;			     /* of the SET_DEVICE_STATE_FD in hand; -1: none */
	uint8_t reply[VHOST_USER_REPLY_MAX]; /* to be sent as it is */
	size_t reply_len;
	/* private from here on */
	const struct session_operations *operations;
	void *context;
	struct session_current {
		bool is_pending;
		bool needs_reply;
		uint32_t request;
		uint32_t ring;		 /* of GET_VRING_BASE */
		uint32_t switched_rings; /* ring_enabled() still to be called, bit per ring */
		bool has_reset;		 /* device_reset() still to be called */
	} current;
	/* What was true before the message in hand: until it is done, its fds stay open. */
	struct session_undo {
		uint64_t features, protocol_features;
		bool has_features, is_suspended;
		struct session_region regions[SESSION_REGIONS_MAX];
		size_t n_regions;
		struct session_ring rings[SESSION_RINGS];
		struct session_log log;
	} undo;
	char reason[VHOST_USER_REASON_MAX];
};

/*
 * What the device has to do when the session changed. Each is called with the
 * session already in its new state and returns 0 (done), SESSION_E_PENDING, or
 * a negative errno: the operation failed, the message is NACKed or the session
 * closed, and the session is back in the state before the message. One operation
 * is pending at a time: a message that needs several has the next one called
 * from session_complete(). Pointers to regions are valid until the operation is
 * done. NULL members are allowed in tests and mean "done".
 */
struct session_operations {
	int (*features_set)(void *context);
	/* SET_MEM_TABLE: regions[] is the new table. */
	int (*memory_replaced)(void *context);
	int (*region_added)(void *context, const struct session_region *region);
	int (*region_removed)(void *context, const struct session_region *region);
	/* Also when a started ring got a new kick fd. */
	int (*ring_started)(void *context, uint32_t ring);
	/* is_suspended changed. */
	int (*suspended)(void *context);
	/* VRING_KICK of a started ring. */
	int (*ring_kicked)(void *context, uint32_t ring);
	/* Completed with the base, see session_is_base(), which is the reply. */
	int (*ring_stopped)(void *context, uint32_t ring);
	/* is_enabled changed, of a stopped ring too. */
	int (*ring_enabled)(void *context, uint32_t ring);
	/* SESSION_CALL or SESSION_ERR; -1 in fds[] where the driver polls. */
	int (*ring_fd_set)(void *context, uint32_t ring, enum session_ring_fd which);
	/* RESET_DEVICE; ring_enabled() was called for each ring that it disabled. */
	int (*device_reset)(void *context);
	/* The log flag or address of a started ring changed. */
	int (*ring_log_set)(void *context, uint32_t ring);
	/* SET_LOG_BASE, SET_LOG_FD: log is the new one. */
	int (*log_set)(void *context);
	int (*log_fd_set)(void *context);
	/*
	 * SET_DEVICE_STATE_FD: state_fd is to be written to or read from, and is closed
	 * when the operation is done, which is when somebody else has it.
	 */
	int (*state_transfer)(void *context, bool is_load);
	/* CHECK_DEVICE_STATE: done when the transfer is; its status is the answer. */
	int (*state_check)(void *context);
	/* SET_BACKEND_REQ_FD: a connected unix socket, from now on the device's. */
	void (*backend_fd_set)(void *context, int fd);
	/* GET_CONFIG that covered the CID's last byte. */
	void (*config_read)(void *context);
};

/* A fresh session; session_end() must have been called on an older one. */
void session_init(struct session *session, uint64_t guest_cid, uint64_t offered_features,
		  uint64_t offered_protocol_features, const struct session_operations *operations,
		  void *context);

/*
 * Take one message, as it was framed; sizes, fds and contents are checked here.
 * Owns fds[0..n_fds) from the call on, whatever it returns. 0 or SESSION_E_...;
 * on 0 a reply may wait in reply[0..reply_len).
 */
int session_handle(struct session *session, const struct vhost_user_message *message, int *fds,
		   size_t n_fds);

/*
 * Without an fd, and without having been told to poll: the front-end notifies, or
 * is notified, by a message. Only where INBAND_NOTIFICATIONS was negotiated.
 */
bool session_is_in_band(const struct session *session, uint32_t ring, enum session_ring_fd which);

/*
 * The operation that was pending is done: status 0 or negative errno, value as
 * the operation says. The same returns as session_handle(), SESSION_E_PENDING
 * when the message needed a further operation. Without a pending one: 0, nothing
 * happens.
 */
int session_complete(struct session *session, int status, uint64_t value);

/*
 * Why SESSION_E_CLOSE, or why a message was NACKed: worth a line in the log when it
 * is not empty after session_handle() or session_complete(). One line without
 * "vm=". Valid until the next call.
 */
const char *session_reason(const struct session *session);

/*
 * Can a ring be there? Of a split ring: an avail index. Of a packed one: two
 * positions within it, no further apart than it is long.
 */
bool session_is_base(const struct session *session, uint32_t ring, uint64_t base);

/* Close every fd, forget everything, whatever is pending. May be called twice. */
void session_end(struct session *session);
