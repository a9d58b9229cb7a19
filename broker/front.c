/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/front.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "broker/control.h"
#include "broker/device_frontend.h"
#include "broker/disposal.h"
#include "broker/log.h"
#include "broker/memory_file.h"
#include "broker/scrape.h"
#include "broker/spawner.h"
#include "policy/policy.h"

#define EVENTS_MAX 64

/* Beside a STOP for each worker: what there is once. */
#define OWED_MORE 16

int front_watch(struct front *front, int operation, int fd, uint32_t events, enum front_event kind,
		size_t index)
{
	struct epoll_event event = {
		.events = events,
		.data.u64 = (uint64_t)kind << 32 | index,
	};

	return epoll_ctl(front->epoll, operation, fd, &event) < 0 ? -errno : 0;
}

static uint64_t now_ms(void)
{
	struct timespec now = {0};

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void on_event(struct front *front, uint64_t tag, uint32_t events)
{
	uint32_t index = (uint32_t)tag;

	switch ((enum front_event)(tag >> 32)) {
	case FRONT_EVENT_SPAWNER:
		front_hear_spawner(front);
		return;
	case FRONT_EVENT_LISTENER:
		device_accept_frontend(&front->devices[index]);
		return;
	case FRONT_EVENT_HOST_LISTENER:
		device_accept_host(&front->devices[index >> HOST_LISTENER_BITS],
				   index & ((1u << HOST_LISTENER_BITS) - 1));
		return;
	case FRONT_EVENT_FRONTEND:
		device_frontend_event(&front->devices[index], events);
		return;
	case FRONT_EVENT_WORKER:
		workers_event(front, &front->workers[index], events);
		return;
	case FRONT_EVENT_CONTROL_LISTENER:
		control_accept(front);
		return;
	case FRONT_EVENT_CONTROL:
		control_event(front, index, events);
		return;
	case FRONT_EVENT_NOTIFY:
		notify_flush(&front->devices[index]);
		return;
	case FRONT_EVENT_SCRAPE_LISTENER:
		scrape_accept(front);
		return;
	case FRONT_EVENT_SCRAPE:
		scrape_event(front, index, events);
		return;
	}
}

static int timeout(const struct front *front)
{
	uint64_t deadline = workers_deadline(front), wait;

	for (size_t i = 0; i < front->n_devices; i++) {
		uint64_t of_device = device_deadline(&front->devices[i]);

		if (front->devices[i].has_more)
			return 0;
		if (of_device < deadline)
			deadline = of_device;
	}
	if (front->spawn_at > front->now && front->spawn_at < deadline)
		deadline = front->spawn_at;
	if (front_requests_deadline(front) < deadline)
		deadline = front_requests_deadline(front);
	if (control_deadline(front) < deadline)
		deadline = control_deadline(front);
	if (scrape_deadline(front) < deadline)
		deadline = scrape_deadline(front);
	if (deadline == UINT64_MAX)
		return -1;
	wait = deadline > front->now ? deadline - front->now : 0;
	return wait < INT32_MAX ? (int)wait : INT32_MAX;
}

/* Sessions that came as fds don't come again. */
static bool are_all_over(const struct front *front)
{
	for (size_t i = 0; i < front->n_devices; i++)
		if (front->devices[i].listener >= 0 || front->devices[i].has_frontend)
			return false;
	return true;
}

static void run_once(struct front *front)
{
	struct epoll_event events[EVENTS_MAX];
	int n = epoll_wait(front->epoll, events, EVENTS_MAX, timeout(front));

	if (n < 0 && errno != EINTR) {
		front->exit_code = EX_OSERR;
		return;
	}
	front->now = now_ms();
	for (int i = 0; i < n; i++)
		on_event(front, events[i].data.u64, events[i].events);
	workers_run_timers(front);
	front_run_requests(front);
	for (size_t i = 0; i < front->n_devices; i++) {
		if (front->devices[i].has_more)
			device_frontend_event(&front->devices[i], 0);
		device_run_timers(&front->devices[i]);
		device_update(&front->devices[i]);
	}
	workers_replenish(front);
	control_run(front);
	scrape_run(front);
	if (are_all_over(front))
		front->exit_code = EX_OK;
}

/*
 * Room for what may come, of which only what is used costs memory; in a file as the
 * workers' buffers are, because a host may count every byte of private memory.
 */
static void *reserve(uint64_t size)
{
	int fd = memfd_create("front", MFD_CLOEXEC);
	void *start = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, (off_t)size) == 0)
		start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (fd >= 0)
		close(fd);
	return start == MAP_FAILED ? NULL : start;
}

/* VMs that come later get their endpoints here. */
static bool place_endpoints(struct front *front)
{
	uint64_t size = endpoints_memory(CONFIGURATION_CONNECTIONS_MAX);
	char *memory = reserve(size * BANK_PLACES);

	for (size_t i = 0; i < BANK_PLACES && memory; i++)
		endpoints_place(&front->devices[i].endpoints, memory + i * size,
				CONFIGURATION_CONNECTIONS_MAX);
	return memory != NULL;
}

static bool allocate_endpoints(struct front *front)
{
	const struct configuration *configuration = front->configuration;
	bool is_good = true;

	for (size_t i = 0; i < front->n_devices && is_good; i++)
		is_good = endpoints_init(&front->devices[i].endpoints,
					 configuration->vms[i].max_connections);
	return is_good;
}

static bool allocate(struct front *front, const struct front_setup *setup)
{
	size_t n_places = front->banks ? BANK_PLACES : front->n_devices;
	size_t n_vms = front->banks ? CONFIGURATION_VMS_MAX : front->n_devices;

	front->n_workers_max = n_vms * SPAWNER_WORKERS_PER_VM + SPAWNER_WORKERS_SPARE;
	/* Tokens of endpoints that ended stay until their turn: as many once more. */
	front->n_connects_max = 2 * setup->n_files;
	front->devices = calloc(n_places, sizeof(struct device));
	front->workers = calloc(front->n_workers_max, sizeof(struct worker));
	front->n_owed_max = front->n_workers_max + OWED_MORE;
	front->owed = calloc(front->n_owed_max, sizeof(*front->owed));
	front->connects = reserve(front->n_connects_max * sizeof(uint64_t));
	front->retries = reserve(front->n_connects_max * sizeof(uint64_t));
	front->retry_times = reserve(front->n_connects_max * sizeof(uint64_t));
	if (!front->devices || !front->workers || !front->owed || !front->connects ||
	    !front->retries || !front->retry_times)
		return false;
	for (size_t i = 0; i < front->n_workers_max; i++)
		front->workers[i] = (struct worker){.channel = -1, .buffer = -1};
	if (!(front->banks ? place_endpoints(front) : allocate_endpoints(front)))
		return false;
	for (size_t i = 0; i < n_places; i++) {
		front->devices[i].ring_journal = memory_file_make("rings", RING_JOURNAL_LEN);
		if (front->devices[i].ring_journal < 0)
			return false;
		device_clear(&front->devices[i], front, (uint32_t)i);
	}
	return getrandom(&front->seed, sizeof(front->seed), 0) == sizeof(front->seed);
}

static bool begin_device(struct device *device, const struct vm_configuration *configuration,
			 const struct vm_sockets *sockets)
{
	device_configure(device, configuration);
	for (size_t number = 0; number < SOCKETS_MAX; number++) {
		int fd = sockets->all[number].fd;

		if (number == SOCKET_FRONTEND && sockets->is_connected)
			continue;
		if (fd >= 0 && !device_listen(device, number, fd))
			return false;
		if (sockets->all[number].is_passed)
			device_resume(device);
	}
	return !sockets->is_connected ||
	       device_open_session(device, sockets->all[SOCKET_FRONTEND].fd);
}

/*
 * A unix socket takes a message at once or never (EMSGSIZE): the kernel wants so much
 * of the send buffer for itself, and the workers of two guests a byte for what they
 * tell each other of a message. All sockets start with the same one.
 */
#define MESSAGE_OVERHEAD (32 + 1)

static bool measure_messages(struct front *front)
{
	int size = 0;
	socklen_t len = sizeof(size);

	if (getsockopt(front->spawner, SOL_SOCKET, SO_SNDBUF, &size, &len) < 0 ||
	    size <= MESSAGE_OVERHEAD)
		return false;
	front->message_size = (uint32_t)(size - MESSAGE_OVERHEAD);
	return true;
}

static bool prepare(struct front *front, const struct front_setup *setup)
{
	front->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (front->epoll < 0 || !measure_messages(front) || !allocate(front, setup) ||
	    front_watch(front, EPOLL_CTL_ADD, setup->spawner, EPOLLIN, FRONT_EVENT_SPAWNER, 0) < 0)
		return false;
	for (size_t i = 0; i < front->n_devices; i++)
		if (!begin_device(&front->devices[i], &setup->configuration->vms[i],
				  &setup->sockets->vms[i]))
			return false;
	if (front->banks && banks_protect(front->banks) < 0)
		return false;
	if (setup->sockets->control.fd >= 0 &&
	    !control_init(front, setup->sockets->control.fd, setup->configuration->file))
		return false;
	return (setup->sockets->metrics.fd < 0 && setup->exporter < 0) ||
	       scrape_init(front, setup->sockets->metrics.fd, setup->exporter);
}

int front_run(const struct front_setup *setup)
{
	static struct front front;
	struct policy_failure failure;
	struct policy_limits limits = {
		.insecure = setup->configuration->insecure,
		.n_files = setup->n_files,
	};

	front = (struct front){
		.configuration = setup->configuration,
		.banks = setup->banks,
		.n_devices = setup->configuration->n_vms,
		.spawner = setup->spawner,
		.now = now_ms(),
		.exit_code = -1,
	};
	if (!prepare(&front, setup)) {
		log_event(LOG_ERR, LOG_NO_VM, "cannot prepare the front: %s", strerror(errno));
		return EX_OSERR;
	}
	if (policy_enter(POLICY_FRONT, &limits, &failure) < 0) {
		log_event(LOG_ERR, LOG_NO_VM, "front: %s", failure.text);
		return EX_NOPERM;
	}
	disposal_begin();
	front.now = now_ms();
	workers_replenish(&front);
	while (front.exit_code < 0)
		run_once(&front);
	return front.exit_code;
}
