/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <sys/socket.h>

#include "tests/frontend/guest_internal.h"

/* Back-end messages, as the document numbers them. */
enum { VRING_CALL = 4, VRING_ERR = 5 };

struct notification {
	struct vhost_header header;
	struct vhost_ring_state state;
};

/* A ring that is not set up yet needs none: its start is a kick. */
static void kick(void *context, uint32_t index)
{
	struct guest *guest = context;
	int error;

	if (!guest->is_started)
		return;
	error = vhost_set_ring(&guest->vhost, VHOST_VRING_KICK, index, 0);
	if (error == -ECONNRESET)
		guest->is_disconnected = true;
	else if (error)
		guest_violate(guest, "ring %u: VRING_KICK: %s", index, vhost_error(&guest->vhost));
}

void guest_in_band_init(struct guest *guest)
{
	for (uint32_t i = 0; i < guest->n_rings; i++) {
		guest->rings[i].on_kick = kick;
		guest->rings[i].context = guest;
		guest->rings[i].index = i;
	}
}

static void take(struct guest *guest, const struct notification *notification)
{
	uint32_t index = notification->state.index;

	/* An answer is not asked for: whoever waits for one could be made to wait. */
	if (notification->header.flags != VHOST_FLAG_VERSION ||
	    notification->header.size != sizeof(notification->state) || index >= guest->n_rings ||
	    notification->state.num != 0 || guest->options.signals != GUEST_SIGNALS_IN_BAND) {
		guest_violate(guest, "back-end message %u: flags 0x%x, %u bytes, ring %u, num %u",
			      notification->header.request, notification->header.flags,
			      notification->header.size, index, notification->state.num);
		return;
	}
	/* "Suspended device state": no message while no ring is started. */
	if (!guest->is_started && !guest->is_starting)
		guest_violate(guest, "ring %u: notified while all rings are stopped", index);
	if (notification->header.request == VRING_CALL)
		guest->rings[index].n_calls++;
	else if (notification->header.request == VRING_ERR)
		guest->n_ring_errors++;
	else
		guest_violate(guest, "back-end message %u", notification->header.request);
}

void guest_in_band_drain(struct guest *guest)
{
	struct notification notification;
	ssize_t n;

	for (;;) {
		n = recv(guest->backend_fd, &notification, sizeof(notification), MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n == (ssize_t)sizeof(notification)) {
			take(guest, &notification);
			continue;
		}
		/* Which of the two sockets ends first is nobody's promise. */
		if (n == 0 || (n < 0 && errno == ECONNRESET))
			guest->is_backend_closed = true;
		else
			guest_violate(guest, "back-end message of %zd bytes", n);
		return;
	}
}
