/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/spawner.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "broker/configuration.h"
#include "broker/exporter.h"
#include "broker/log.h"
#include "broker/processes.h"
#include "broker/reload.h"
#include "broker/service.h"
#include "broker/spawner_channel.h"
#include "broker/spawner_sockets.h"
#include "policy/start.h"

/* What a loop step returns when the loop goes on; else it is an exit code. */
#define GO_ON (-1)

#define EVENTS_PER_WAKEUP 16

/* Tags of epoll events; workers follow, by slot. */
enum {
	TAG_CHANNEL,
	TAG_FRONT,
	TAG_SIGNAL,
	TAG_WATCHDOG,
	TAG_EXPORTER,
	TAG_EXPORTER_TIMER,
	TAG_WORKERS,
};

struct spawner {
	const struct spawner_setup *setup;
	struct processes workers;
	struct exporter exporter;
	int epoll_fd, signal_fd;
	int watchdog_fd; /* a timer; -1: nobody waits for us */
	bool is_ready;	 /* the front has said so */
	bool awaits_alive;
	bool wants_reload; /* as soon as the front has taken the last one */
	bool owes_reload;  /* to the front, who asked */
	uint64_t reload_token;
};

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

#define AUTO_CLOSE __attribute__((cleanup(close_fd)))

/* The front is gone; say how, as nothing else can. */
static int front_ended(const struct spawner *spawner)
{
	int status = processes_wait(spawner->setup->front_pidfd);

	if (status < 0) {
		log_event(LOG_ERR, LOG_NO_VM, "cannot wait for the front: %s", strerror(-status));
		return EX_OSERR;
	}
	if (WIFEXITED(status)) {
		log_event(WEXITSTATUS(status) ? LOG_ERR : LOG_INFO, LOG_NO_VM,
			  "the front ended with exit code %d", WEXITSTATUS(status));
		return WEXITSTATUS(status);
	}
	log_event(LOG_ERR, LOG_NO_VM, "the front was killed by signal %d (%s)%s", WTERMSIG(status),
		  sigabbrev_np(WTERMSIG(status)) ? sigabbrev_np(WTERMSIG(status)) : "?",
		  WTERMSIG(status) == SIGSYS ? ": its system-call filter" : "");
	return EX_SOFTWARE;
}

/* Which signal came: GO_ON when it has done all it can do. */
static int on_signal(struct spawner *spawner)
{
	struct signalfd_siginfo signal;

	if (read(spawner->signal_fd, &signal, sizeof(signal)) != sizeof(signal))
		return GO_ON;
	if (signal.ssi_signo != SIGHUP || !spawner->setup->reload) {
		service_stopping();
		return EX_OK;
	}
	spawner->wants_reload = true;
	return GO_ON;
}

/*
 * A front that doesn't read is waited for here: nothing else can be done
 * meanwhile that would not end in another reply. Its death and our signals
 * still count, so this never hangs on a front that is stuck.
 */
static int await_room(struct spawner *spawner)
{
	struct pollfd fds[] = {
		{.fd = spawner->setup->front_channel, .events = POLLOUT},
		{.fd = spawner->setup->front_pidfd, .events = POLLIN},
		{.fd = spawner->signal_fd, .events = POLLIN},
	};

	while (poll(fds, sizeof(fds) / sizeof(fds[0]), -1) < 0) {
		if (errno != EINTR)
			return EX_OSERR;
	}
	if (fds[1].revents)
		return front_ended(spawner);
	return fds[2].revents ? on_signal(spawner) : GO_ON;
}

/* Send a reply with fds, which stay the caller's; did they go along? GO_ON or exit code. */
static int send_with(struct spawner *spawner, const struct spawner_reply *reply, const int *fds,
		     size_t n_fds, bool *ret_went_along)
{
	int step, r;

	for (;;) {
		r = spawner_channel_send(spawner->setup->front_channel, reply, fds, n_fds);
		*ret_went_along = r != SPAWNER_CHANNEL_E_BARE;
		/* Where it is closed its end is on the way, and will be told of once. */
		if (r == 0 || r == SPAWNER_CHANNEL_E_BARE || r == SPAWNER_CHANNEL_E_CLOSED)
			return GO_ON;
		if (r < 0) {
			log_event(LOG_ERR, LOG_NO_VM, "cannot answer the front: %s", strerror(-r));
			return EX_OSERR;
		}
		step = await_room(spawner);
		if (step != GO_ON)
			return step;
	}
}

/* The front hears it from the reply itself if they did not. */
static int send_reply(struct spawner *spawner, const struct spawner_reply *reply, const int *fds,
		      size_t n_fds)
{
	bool went_along;

	return send_with(spawner, reply, fds, n_fds, &went_along);
}

static int refuse(struct spawner *spawner, struct spawner_reply reply, int error)
{
	reply.error = error;
	return send_reply(spawner, &reply, NULL, 0);
}

static int watch(const struct spawner *spawner, int fd, uint64_t tag)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = tag};

	return epoll_ctl(spawner->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static int on_spawn(struct spawner *spawner, const struct spawner_request *request)
{
	struct spawner_reply reply = {.kind = SPAWNER_SPAWNED, .token = request->token};
	struct processes_slot *slot;
	int pair[2], status, step;

	/* The worker may wait at its end, the front never. */
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return refuse(spawner, reply, errno);
	AUTO_CLOSE int front_end = pair[0];
	AUTO_CLOSE int worker_end = pair[1];
	if (fcntl(front_end, F_SETFL, O_NONBLOCK) < 0)
		return refuse(spawner, reply, errno);

	status = processes_start(&spawner->workers, worker_end, request->number != 0, &slot);
	if (status)
		return refuse(spawner, reply, -status);
	const int fds[] = {front_end, slot->buffer};

	status = watch(spawner, slot->process.pidfd,
		       TAG_WORKERS + (uint64_t)(slot - spawner->workers.slots));
	if (status) {
		processes_kill(&spawner->workers, slot->number);
		(void)processes_reap(slot);
		return refuse(spawner, reply, -status);
	}
	log_event(LOG_DEBUG, LOG_NO_VM, "worker %" PRIu32 " is process %d", slot->number,
		  (int)slot->process.pid);
	reply.number = slot->number;
	reply.device = (uint32_t)slot->process.pid;
	reply.buffer_size = spawner->workers.buffer_size;
	reply.program = slot->program;
	step = send_reply(spawner, &reply, fds, 2);
	processes_forget_buffer(slot);
	return step;
}

static int worker_ended(struct spawner *spawner, struct processes_slot *worker)
{
	struct spawner_reply reply = {.kind = SPAWNER_EXITED, .number = worker->number};
	int status = processes_reap(worker);

	if (status < 0) {
		log_event(LOG_ERR, LOG_NO_VM, "cannot wait for worker %" PRIu32 ": %s",
			  worker->number, strerror(-status));
		return EX_OSERR;
	}
	log_event(LOG_DEBUG, LOG_NO_VM, "worker %" PRIu32 ", process %d, ended: wait status 0x%x",
		  worker->number, (int)worker->process.pid, (unsigned int)status);
	reply.error = status;
	return send_reply(spawner, &reply, NULL, 0);
}

static int on_socket(struct spawner *spawner, const struct spawner_request *request, int fd)
{
	struct spawner_reply reply;
	int fds[SPAWNER_SOCKETS_MAX];
	size_t n_fds =
		spawner_sockets_answer(spawner->setup->configuration, request, fd, &reply, fds);
	int step = send_reply(spawner, &reply, fds, n_fds);

	for (size_t i = 0; i < n_fds; i++)
		close(fds[i]);
	return step;
}

static bool is_bare(const struct spawner_request *request)
{
	return !request->device && !request->number && !request->type;
}

/*
 * The front may be in an attacker's hands. It knows what it may say; what it
 * may not say it doesn't say by mistake.
 */
static bool is_permitted(const struct spawner *spawner, const struct spawner_request *request)
{
	const struct reload *reload = spawner->setup->reload;

	switch (request->kind) {
	case SPAWNER_SPAWN:
		return !request->device && request->number <= 1 && !request->type;
	case SPAWNER_STOP:
		return !request->device && !request->type &&
		       request->number < spawner->workers.next_number;
	case SPAWNER_LOG_LEVEL:
		return !request->device && !request->type && request->number >= LOG_ERR &&
		       request->number <= LOG_DEBUG;
	case SPAWNER_CONNECT:
	case SPAWNER_JUDGE:
	case SPAWNER_PAIR:
		return spawner_sockets_is_permitted(spawner->setup->configuration, request) ||
		       (reload && reload->is_pending &&
			spawner_sockets_is_permitted(&reload->previous, request));
	case SPAWNER_RELOAD_NOW:
		return reload && !spawner->owes_reload && is_bare(request);
	case SPAWNER_READY:
		return !spawner->is_ready && is_bare(request);
	case SPAWNER_ALIVE:
		return spawner->awaits_alive && is_bare(request);
	case SPAWNER_RELOADED:
		return reload && reload->is_pending && !request->device &&
		       request->number == reload->bank && !request->type;
	default:
		return false;
	}
}

static int break_off(const char *what)
{
	log_event(LOG_ERR, LOG_NO_VM, "the front broke the protocol: %s", what);
	return EX_SOFTWARE;
}

static void say_ready(const struct spawner *spawner)
{
	const struct configuration *configuration = spawner->setup->configuration;
	char status[32];
	size_t n_vms = 0;

	if (!spawner->is_ready)
		return;
	for (size_t i = 0; i < configuration->n_vms; i++)
		n_vms += configuration->vms[i].guest_cid != 0;
	(void)snprintf(status, sizeof(status), "%zu VM%s", n_vms, n_vms == 1 ? "" : "s");
	service_ready(status);
}

static int answer(struct spawner *spawner, const struct spawner_request *request, int fd)
{
	if (!is_permitted(spawner, request))
		return break_off("a request that is not permitted");
	switch (request->kind) {
	case SPAWNER_SPAWN:
		return on_spawn(spawner, request);
	case SPAWNER_STOP:
		/* Unknown: it has ended by itself, and the front hasn't read EXITED yet. */
		processes_kill(&spawner->workers, request->number);
		return GO_ON;
	case SPAWNER_LOG_LEVEL:
		log_set_level((int)request->number);
		return GO_ON;
	case SPAWNER_RELOAD_NOW:
		spawner->wants_reload = true;
		spawner->owes_reload = true;
		spawner->reload_token = request->token;
		return GO_ON;
	case SPAWNER_READY:
		spawner->is_ready = true;
		say_ready(spawner);
		return GO_ON;
	case SPAWNER_ALIVE:
		spawner->awaits_alive = false;
		service_alive();
		return GO_ON;
	case SPAWNER_RELOADED:
		reload_finish(spawner->setup->reload);
		say_ready(spawner);
		return GO_ON;
	default:
		return on_socket(spawner, request, fd);
	}
}

static int on_request(struct spawner *spawner)
{
	struct pollfd front = {.fd = spawner->setup->front_pidfd, .events = POLLIN};
	struct spawner_request request;
	AUTO_CLOSE int fd = -1;

	switch (spawner_channel_receive(spawner->setup->front_channel, &request, &fd)) {
	case 0:
		return answer(spawner, &request, fd);
	case SPAWNER_CHANNEL_E_AGAIN:
		return GO_ON;
	case SPAWNER_CHANNEL_E_CLOSED:
		/* The channel closes a moment before the process is gone. */
		if (poll(&front, 1, 2000) == 1)
			return front_ended(spawner);
		return break_off("its channel is closed");
	default:
		return break_off("a request of a wrong size, or with wrong fds");
	}
}

/*
 * The service manager hears that all is well when both loops went round: this one, and
 * the front's, which answers. One that hangs is not asked again.
 */
static int on_watchdog(struct spawner *spawner)
{
	const struct spawner_reply ping = {.kind = SPAWNER_PING};
	uint64_t n_expired;

	if (read(spawner->watchdog_fd, &n_expired, sizeof(n_expired)) < 0 || spawner->awaits_alive)
		return GO_ON;
	spawner->awaits_alive = true;
	return send_reply(spawner, &ping, NULL, 0);
}

static int watch_exporter(struct spawner *spawner)
{
	int status = spawner->exporter.is_live
			     ? watch(spawner, spawner->exporter.process.pidfd, TAG_EXPORTER)
			     : 0;

	if (!status)
		return GO_ON;
	log_event(LOG_ERR, LOG_NO_VM, "cannot watch the exporter: %s", strerror(-status));
	return EX_OSERR;
}

static int on_event(struct spawner *spawner, uint64_t tag)
{
	struct processes_slot *worker;

	switch (tag) {
	case TAG_SIGNAL:
		return on_signal(spawner);
	case TAG_WATCHDOG:
		return on_watchdog(spawner);
	case TAG_EXPORTER:
		exporter_ended(&spawner->exporter);
		return GO_ON;
	case TAG_EXPORTER_TIMER:
		exporter_retry(&spawner->exporter);
		return watch_exporter(spawner);
	case TAG_FRONT:
		return front_ended(spawner);
	case TAG_CHANNEL:
		return on_request(spawner);
	default:
		worker = &spawner->workers.slots[tag - TAG_WORKERS];
		return worker->is_live ? worker_ended(spawner, worker) : GO_ON;
	}
}

/*
 * Workers first: a slot that a request of the same wake-up takes again must
 * not get the event of its predecessor.
 */
static int on_events(struct spawner *spawner, const struct epoll_event *events, int n_events)
{
	int step = GO_ON;

	for (int i = 0; i < n_events && step == GO_ON; i++) {
		if (events[i].data.u64 != TAG_FRONT && events[i].data.u64 != TAG_CHANNEL)
			step = on_event(spawner, events[i].data.u64);
	}
	for (int i = 0; i < n_events && step == GO_ON; i++) {
		if (events[i].data.u64 == TAG_FRONT)
			step = on_event(spawner, TAG_FRONT);
	}
	for (int i = 0; i < n_events && step == GO_ON; i++) {
		if (events[i].data.u64 == TAG_CHANNEL)
			step = on_event(spawner, TAG_CHANNEL);
	}
	return step;
}

static int answer_reload(struct spawner *spawner, int error)
{
	const struct spawner_reply reply = {
		.kind = SPAWNER_RELOAD_DONE,
		.error = error,
		.token = spawner->reload_token,
	};

	if (!spawner->owes_reload)
		return GO_ON;
	spawner->owes_reload = false;
	return send_reply(spawner, &reply, NULL, 0);
}

/* The new sockets. One that cannot go along is the last. */
static int send_sockets(struct spawner *spawner, const struct reload_messages *messages,
			bool *ret_went_along)
{
	int step = GO_ON;

	*ret_went_along = true;
	for (size_t i = 0; i < messages->n && step == GO_ON && *ret_went_along; i++)
		if (messages->all[i].fd >= 0)
			step = send_with(spawner, &messages->all[i].reply, &messages->all[i].fd, 1,
					 ret_went_along);
	return step;
}

/* That all of them are taken up, and what else there is to do. */
static int send_rest(struct spawner *spawner, const struct reload_messages *messages)
{
	int step = GO_ON;

	for (size_t i = 0; i < messages->n && step == GO_ON; i++)
		if (messages->all[i].fd < 0)
			step = send_reply(spawner, &messages->all[i].reply, NULL, 0);
	return step;
}

static int end_refused(struct spawner *spawner, int error)
{
	log_copy(NULL, 0);
	if (spawner->is_ready)
		service_ready("the last reload was refused, see the log");
	return answer_reload(spawner, error);
}

/* The file was changed, or whoever sent the signal says so. */
static int run_reload(struct spawner *spawner)
{
	static struct reload_messages messages;
	struct reload *reload = spawner->setup->reload;
	int step, status;
	bool went_along;

	spawner->wants_reload = false;
	if (spawner->is_ready)
		service_reloading();
	/* Who asked may not have read it yet when a signal's comes. */
	if (spawner->owes_reload)
		log_copy(reload->banks.text, BANKS_TEXT_SIZE);
	if (!reload_prepare(reload, &messages))
		return end_refused(spawner, EINVAL);
	step = send_sockets(spawner, &messages, &went_along);
	if (step != GO_ON) {
		reload_refuse(&messages, "vsockd ends");
		return step;
	}
	if (!went_along) {
		reload_refuse(&messages,
			      "too many open files of this user are on their way from one process "
			      "to another: try again");
		return end_refused(spawner, EAGAIN);
	}
	reload_take_up(reload, &messages);
	status = processes_adapt(&spawner->workers, reload->configuration);
	if (status) {
		log_event(LOG_ERR, LOG_NO_VM, "cannot prepare for workers: %s", strerror(-status));
		step = EX_OSERR;
	}
	if (step == GO_ON)
		step = send_rest(spawner, &messages);
	reload_forget(&messages);
	if (step == GO_ON)
		reload_say(reload);
	log_copy(NULL, 0);
	return step == GO_ON ? answer_reload(spawner, 0) : step;
}

static int loop(struct spawner *spawner)
{
	struct epoll_event events[EVENTS_PER_WAKEUP];
	int step = GO_ON, n_events;

	while (step == GO_ON) {
		n_events = epoll_wait(spawner->epoll_fd, events, EVENTS_PER_WAKEUP, -1);
		if (n_events < 0 && errno != EINTR) {
			log_event(LOG_ERR, LOG_NO_VM, "cannot wait for events: %s",
				  strerror(errno));
			return EX_OSERR;
		}
		step = on_events(spawner, events, n_events);
		if (step == GO_ON && spawner->wants_reload && spawner->setup->reload &&
		    !spawner->setup->reload->is_pending)
			step = run_reload(spawner);
	}
	return step;
}

/* Fds in flight to the front count against the limit too; take all there are. */
static void raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &limit);
}

static bool prepare_watchdog(struct spawner *spawner)
{
	uint64_t interval = service_watchdog();
	struct itimerspec times = {
		.it_interval = {.tv_sec = (time_t)(interval / 1000),
				.tv_nsec = (long)(interval % 1000 * 1000000)},
	};

	if (interval == 0)
		return true;
	times.it_value = times.it_interval;
	spawner->watchdog_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	return spawner->watchdog_fd >= 0 &&
	       timerfd_settime(spawner->watchdog_fd, 0, &times, NULL) == 0 &&
	       watch(spawner, spawner->watchdog_fd, TAG_WATCHDOG) == 0;
}

static int prepare_loop(struct spawner *spawner)
{
	sigset_t signals;

	(void)sigemptyset(&signals);
	(void)sigaddset(&signals, SIGTERM);
	(void)sigaddset(&signals, SIGINT);
	(void)sigaddset(&signals, SIGHUP);
	(void)signal(SIGPIPE, SIG_IGN);
	spawner->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	spawner->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (spawner->signal_fd < 0 || spawner->epoll_fd < 0 ||
	    watch(spawner, spawner->setup->front_channel, TAG_CHANNEL) ||
	    watch(spawner, spawner->setup->front_pidfd, TAG_FRONT) ||
	    watch(spawner, spawner->signal_fd, TAG_SIGNAL) || !prepare_watchdog(spawner)) {
		log_event(LOG_ERR, LOG_NO_VM, "cannot prepare the spawner: %s", strerror(errno));
		return EX_OSERR;
	}
	return GO_ON;
}

static int prepare_workers(struct spawner *spawner)
{
	const struct configuration *configuration = spawner->setup->configuration;
	int status = processes_init(&spawner->workers, configuration,
				    spawner->setup->reload ? CONFIGURATION_VMS_MAX
							   : configuration->n_vms,
				    spawner->setup->worker_program, spawner->setup->worker_path);

	if (!status)
		return GO_ON;
	log_event(LOG_ERR, LOG_NO_VM, "cannot prepare for workers: %s", strerror(-status));
	return status == -EOVERFLOW ? EX_CONFIG : EX_OSERR;
}

/* One that cannot be started at all is told now; one that ends later is started again. */
static int prepare_exporter(struct spawner *spawner)
{
	struct exporter *exporter = &spawner->exporter;
	int status = exporter_init(exporter, spawner->setup->exporter,
				   spawner->setup->configuration->insecure);

	if (!status && exporter->timer >= 0)
		status = watch(spawner, exporter->timer, TAG_EXPORTER_TIMER);
	if (status) {
		log_event(LOG_ERR, LOG_NO_VM, "cannot prepare the exporter: %s", strerror(-status));
		return EX_OSERR;
	}
	if (exporter->timer >= 0 && exporter_start(exporter) < 0)
		return EX_OSERR;
	return watch_exporter(spawner);
}

static int run(struct spawner *spawner)
{
	struct policy_failure failure;
	int step;

	raise_file_limit();
	step = prepare_workers(spawner);
	if (step == GO_ON)
		step = prepare_loop(spawner);
	if (step != GO_ON)
		return step;
	if (policy_reduce_spawner(spawner->setup->configuration->insecure,
				  spawner->setup->reload != NULL, &failure)) {
		log_event(LOG_ERR, LOG_NO_VM, "%s", failure.text);
		return EX_OSERR;
	}
	step = prepare_exporter(spawner);
	return step == GO_ON ? loop(spawner) : step;
}

int spawner_run(const struct spawner_setup *setup)
{
	struct spawner spawner = {
		.setup = setup,
		.epoll_fd = -1,
		.signal_fd = -1,
		.watchdog_fd = -1,
		.exporter.timer = -1,
	};
	int code = run(&spawner);

	/* The front may have been waited for already: then both calls just fail. */
	(void)syscall(SYS_pidfd_send_signal, setup->front_pidfd, SIGKILL, NULL, 0u);
	(void)processes_wait(setup->front_pidfd);
	processes_end(&spawner.workers);
	exporter_end(&spawner.exporter);
	close_fd(&spawner.epoll_fd);
	close_fd(&spawner.signal_fd);
	close_fd(&spawner.watchdog_fd);
	return code;
}
