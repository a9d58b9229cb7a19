/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/bench/relay.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOTS_MAX   DRIVER_QUEUE_SIZE
#define BATCH_MAX   64
#define PAYLOAD_MAX 65536
#define RX_ROOM	    (DRIVER_RX_BUFFER_SIZE - DRIVER_HEADER_LEN)
#define LINE	    64 /* bytes of a cache line: the two sides do not share one by accident */
#define KICK	    UINT32_MAX
#define EVENTS_MAX  64
#define PASSES	    16 /* over all sockets, before it looks for more of them */

struct slot {
	uint32_t connection, len;
};

/* Indices run freely; what is between them belongs to the consumer. */
struct queue {
	_Alignas(LINE) _Atomic uint32_t head; /* the producer's */
	_Alignas(LINE) _Atomic uint32_t tail; /* the consumer's */
	_Alignas(LINE) _Atomic uint32_t producer_waits;
	_Alignas(LINE) _Atomic uint32_t consumer_waits;
	_Alignas(LINE) struct slot slots[SLOTS_MAX];
};

struct shared {
	struct queue tx, rx; /* from the guest, to the guest */
	_Alignas(4096) uint8_t rx_bytes[SLOTS_MAX][DRIVER_RX_BUFFER_SIZE];
	_Alignas(4096) uint8_t tx_bytes[DRIVER_TX_PACKETS * PAYLOAD_MAX];
};

struct relay {
	struct driver driver;
	struct shared *shared;
	size_t n_slots, payload, n_batch; /* slots of tx */
	int kick, call;
	int fds[DRIVER_CONNECTIONS_MAX];
	bool is_readable[DRIVER_CONNECTIONS_MAX];
	bool is_blocked; /* the socket of the first slot takes no more */
	size_t skip;	 /* bytes of the first slot that were sent */
	size_t next;	 /* to be read */
	bool was_full;	 /* the guest found no room: it waits for half of it */
	int epoll;
};

static uint32_t waiting(struct queue *queue)
{
	return atomic_load_explicit(&queue->head, memory_order_acquire) -
	       atomic_load_explicit(&queue->tail, memory_order_acquire);
}

static void wake(_Atomic uint32_t *waits, int fd)
{
	uint64_t one = 1;

	atomic_thread_fence(memory_order_seq_cst);
	if (!atomic_load_explicit(waits, memory_order_relaxed))
		return;
	atomic_store_explicit(waits, 0, memory_order_relaxed);
	/* Fails only when the counter is full, and then it wakes as well. */
	if (write(fd, &one, sizeof(one)) < 0)
		return;
}

static void advance(_Atomic uint32_t *index, uint32_t n)
{
	uint32_t before = atomic_load_explicit(index, memory_order_relaxed);

	atomic_store_explicit(index, before + n, memory_order_release);
}

static void wait_for(_Atomic uint32_t *waits, bool is_wanted)
{
	atomic_store_explicit(waits, is_wanted, memory_order_relaxed);
	atomic_thread_fence(memory_order_seq_cst);
}

/* ---- the process */

static size_t gather(struct relay *relay, uint32_t n, struct iovec *ret_parts)
{
	struct queue *tx = &relay->shared->tx;
	uint32_t tail = atomic_load_explicit(&tx->tail, memory_order_relaxed);
	size_t n_parts = 0;

	while (n_parts < n && n_parts < relay->n_batch) {
		uint32_t index = (tail + (uint32_t)n_parts) % (uint32_t)relay->n_slots;
		size_t skip = n_parts == 0 ? relay->skip : 0;

		if (tx->slots[index].connection !=
		    tx->slots[tail % (uint32_t)relay->n_slots].connection)
			break;
		ret_parts[n_parts++] = (struct iovec){
			.iov_base = relay->shared->tx_bytes + index * relay->payload + skip,
			.iov_len = tx->slots[index].len - skip,
		};
	}
	return n_parts;
}

static bool send_some(struct relay *relay)
{
	struct queue *tx = &relay->shared->tx;
	uint32_t n = waiting(tx), n_done = 0, tail;
	struct iovec parts[BATCH_MAX];
	struct msghdr message = {.msg_iov = parts};
	ssize_t len;

	if (n == 0 || relay->is_blocked)
		return false;
	tail = atomic_load_explicit(&tx->tail, memory_order_relaxed);
	message.msg_iovlen = gather(relay, n, parts);
	len = sendmsg(relay->fds[tx->slots[tail % (uint32_t)relay->n_slots].connection], &message,
		      MSG_DONTWAIT | MSG_NOSIGNAL);
	if (len < 0) {
		relay->is_blocked = true;
		return false;
	}
	while (n_done < message.msg_iovlen && (size_t)len >= parts[n_done].iov_len)
		len -= (ssize_t)parts[n_done++].iov_len;
	relay->skip = n_done > 0 ? (size_t)len : relay->skip + (size_t)len;
	advance(&tx->tail, n_done);
	/* A guest that waits for room is told when there is some. */
	if (waiting(tx) <= relay->n_slots / 2)
		wake(&tx->producer_waits, relay->call);
	return true;
}

static bool receive_some(struct relay *relay, size_t connection)
{
	struct queue *rx = &relay->shared->rx;
	uint32_t head = atomic_load_explicit(&rx->head, memory_order_relaxed);
	uint32_t n_free = SLOTS_MAX - waiting(rx), n = 0, n_used = 0;
	struct iovec parts[BATCH_MAX];
	ssize_t len;

	for (; n < n_free && n < relay->n_batch; n++)
		parts[n] = (struct iovec){
			.iov_base =
				relay->shared->rx_bytes[(head + n) % SLOTS_MAX] + DRIVER_HEADER_LEN,
			.iov_len = RX_ROOM,
		};
	if (n == 0)
		return false;
	len = readv(relay->fds[connection], parts, (int)n);
	/* Edge-triggered: fewer bytes than asked for mean that an edge will come. */
	if (len < (ssize_t)(n * RX_ROOM))
		relay->is_readable[connection] = false;
	for (; len > 0; len -= RX_ROOM, n_used++)
		rx->slots[(head + n_used) % SLOTS_MAX] = (struct slot){
			.connection = (uint32_t)connection,
			.len = len < RX_ROOM ? (uint32_t)len : RX_ROOM,
		};
	advance(&rx->head, n_used);
	return n_used > 0;
}

static void take_events(struct relay *relay, int timeout)
{
	struct epoll_event events[EVENTS_MAX];
	int n = epoll_wait(relay->epoll, events, EVENTS_MAX, timeout);

	for (int i = 0; i < n; i++) {
		if (events[i].data.u32 == KICK)
			continue;
		if (events[i].events & EPOLLIN)
			relay->is_readable[events[i].data.u32] = true;
		if (events[i].events & EPOLLOUT)
			relay->is_blocked = false;
	}
}

/* Say what is waited for, look again, sleep. */
static void sleep_until_event(struct relay *relay)
{
	struct shared *shared = relay->shared;
	bool has_more, is_full = waiting(&shared->rx) == SLOTS_MAX;

	wait_for(&shared->tx.consumer_waits, true);
	wait_for(&shared->rx.producer_waits, is_full);
	has_more = (waiting(&shared->tx) > 0 && !relay->is_blocked) ||
		   (is_full && waiting(&shared->rx) < SLOTS_MAX);
	take_events(relay, has_more ? 0 : -1);
	wait_for(&shared->tx.consumer_waits, false);
	wait_for(&shared->rx.producer_waits, false);
}

static _Noreturn void serve(struct relay *relay)
{
	struct shared *shared = relay->shared;

	for (;;) {
		size_t n_connections = relay->driver.n_connections;
		bool has_moved = send_some(relay), is_all_readable = true;

		for (size_t i = 0; i < n_connections; i++) {
			size_t at = (relay->next + i) % n_connections;

			if (relay->is_readable[at])
				has_moved |= receive_some(relay, at);
			is_all_readable &= relay->is_readable[at];
		}
		if (has_moved)
			wake(&shared->rx.consumer_waits, relay->call);
		relay->next++;
		if (!has_moved)
			sleep_until_event(relay);
		else if (!is_all_readable && n_connections > 1 && relay->next % PASSES == 0)
			take_events(relay, 0);
	}
}

static bool watch(struct relay *relay)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = KICK};

	relay->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_ctl(relay->epoll, EPOLL_CTL_ADD, relay->kick, &event) < 0)
		return false;
	for (size_t i = 0; i < relay->driver.n_connections; i++) {
		event.events = EPOLLIN | EPOLLOUT | EPOLLET;
		event.data.u32 = (uint32_t)i;
		if (epoll_ctl(relay->epoll, EPOLL_CTL_ADD, relay->fds[i], &event) < 0)
			return false;
	}
	return true;
}

static _Noreturn void run(struct relay *relay, pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, "limit");
	if (getppid() != parent || !watch(relay))
		_exit(1);
	serve(relay);
}

/* ---- the guest's end */

static size_t send_payloads(struct driver *driver, size_t connection, size_t payload, size_t n)
{
	struct relay *relay = (struct relay *)driver;
	struct queue *tx = &relay->shared->tx;
	uint32_t head = atomic_load_explicit(&tx->head, memory_order_relaxed);
	size_t n_free = relay->n_slots - waiting(tx);

	if (n > n_free)
		n = n_free;
	relay->was_full = n == 0;
	if (n == 0)
		return 0;
	for (size_t i = 0; i < n; i++)
		tx->slots[(head + i) % relay->n_slots] = (struct slot){
			.connection = (uint32_t)connection,
			.len = (uint32_t)payload,
		};
	advance(&tx->head, (uint32_t)n);
	wake(&tx->consumer_waits, relay->kick);
	return n;
}

static int take_payloads(struct relay *relay)
{
	struct queue *rx = &relay->shared->rx;
	uint32_t n = waiting(rx);
	uint32_t tail = atomic_load_explicit(&rx->tail, memory_order_relaxed);

	for (uint32_t i = 0; i < n; i++) {
		const struct slot *slot = &rx->slots[(tail + i) % SLOTS_MAX];

		relay->driver.n_received[slot->connection] += slot->len;
	}
	if (n > 0) {
		advance(&rx->tail, n);
		wake(&rx->producer_waits, relay->kick);
	}
	return (int)n;
}

static bool is_idle(const struct relay *relay)
{
	return waiting(&relay->shared->rx) == 0 &&
	       (!relay->was_full || waiting(&relay->shared->tx) > relay->n_slots / 2);
}

static int poll_relay(struct driver *driver, int timeout)
{
	struct relay *relay = (struct relay *)driver;
	struct shared *shared = relay->shared;
	struct pollfd fd = {.fd = relay->call, .events = POLLIN};
	uint64_t count;
	int n = take_payloads(relay);

	if (n > 0 || timeout == 0)
		return n;
	wait_for(&shared->tx.producer_waits, relay->was_full);
	wait_for(&shared->rx.consumer_waits, true);
	if (is_idle(relay) && poll(&fd, 1, timeout) > 0 &&
	    read(relay->call, &count, sizeof(count)) < 0)
		return -errno;
	wait_for(&shared->tx.producer_waits, false);
	wait_for(&shared->rx.consumer_waits, false);
	return take_payloads(relay);
}

static int open_sockets(struct relay *relay, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		int pair[2];

		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
			return -errno;
		relay->fds[i] = pair[0];
		relay->driver.host_fds[i] = pair[1];
		relay->driver.n_connections++;
	}
	return 0;
}

struct relay *relay_start(size_t n_connections, size_t payload, size_t n_batch)
{
	struct relay *relay = calloc(1, sizeof(*relay));
	pid_t parent = getpid();

	if (!relay)
		return NULL;
	relay->driver.send = send_payloads;
	relay->driver.poll = poll_relay;
	relay->payload = payload;
	relay->n_batch = n_batch < BATCH_MAX ? n_batch : BATCH_MAX;
	/* What a guest may have under way: so many bytes a connection, so many packets. */
	relay->n_slots = n_connections * DRIVER_BUF_ALLOC / payload;
	if (relay->n_slots > DRIVER_TX_PACKETS)
		relay->n_slots = DRIVER_TX_PACKETS;
	relay->shared = mmap(NULL, sizeof(*relay->shared), PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	relay->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	relay->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (relay->shared == MAP_FAILED || relay->kick < 0 || relay->call < 0 ||
	    open_sockets(relay, n_connections) < 0) {
		relay_stop(relay);
		return NULL;
	}
	relay->driver.pid = fork();
	if (relay->driver.pid == 0)
		run(relay, parent);
	return relay;
}

struct driver *relay_driver(struct relay *relay)
{
	return &relay->driver;
}

void relay_stop(struct relay *relay)
{
	if (relay->driver.pid > 0) {
		kill(relay->driver.pid, SIGKILL);
		waitpid(relay->driver.pid, NULL, 0);
	}
	for (size_t i = 0; i < relay->driver.n_connections; i++) {
		close(relay->fds[i]);
		close(relay->driver.host_fds[i]);
	}
	if (relay->kick >= 0)
		close(relay->kick);
	if (relay->call >= 0)
		close(relay->call);
	if (relay->shared != MAP_FAILED)
		munmap(relay->shared, sizeof(*relay->shared));
	free(relay);
}
