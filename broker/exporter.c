/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/exporter.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "broker/log.h"
#include "broker/processes.h"

/* From the first to the longest pause, doubled each time. */
#define PAUSE_MS     100u
#define PAUSE_MS_MAX 30000u
/* One that has lived as long did not end because of how it was started. */
#define LONG_MS 60000u

static uint64_t now_ms(void)
{
	struct timespec now = {0};

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int exporter_init(struct exporter *exporter, const struct exporter_setup *setup, uint32_t insecure)
{
	*exporter = (struct exporter){.insecure = insecure, .timer = -1};
	if (!setup)
		return 0;
	exporter->setup = *setup;
	exporter->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	return exporter->timer < 0 ? -errno : 0;
}

int exporter_start(struct exporter *exporter)
{
	char name[] = "vsockd-exporter", insecure[32];
	char *const argv[] = {name, insecure, NULL};
	const struct policy_worker program = {
		.insecure = exporter->insecure,
		.slot = POLICY_EXPORTER_SLOT,
		.program = exporter->setup.program,
		.channel = exporter->setup.channel,
		.buffer = exporter->setup.listener,
		.argv = argv,
	};
	struct policy_failure failure;
	int status;

	(void)snprintf(insecure, sizeof(insecure), "--insecure=%" PRIu32, exporter->insecure);
	status = policy_clone(&program, &exporter->process, &failure);
	if (status) {
		log_event(LOG_ERR, LOG_NO_VM, "exporter: %s", failure.text);
		return status;
	}
	exporter->is_live = true;
	exporter->started = now_ms();
	log_event(LOG_DEBUG, LOG_NO_VM, "the exporter is process %d", (int)exporter->process.pid);
	return 0;
}

/* Returns how long that is, in ms. */
static uint32_t start_later(struct exporter *exporter)
{
	uint32_t pause = PAUSE_MS_MAX;
	struct itimerspec times = {{0, 0}, {0, 0}};

	if (exporter->n_short < 16 && PAUSE_MS << exporter->n_short < PAUSE_MS_MAX)
		pause = PAUSE_MS << exporter->n_short;
	exporter->n_short++;
	times.it_value.tv_sec = (time_t)(pause / 1000);
	times.it_value.tv_nsec = (long)(pause % 1000) * 1000000;
	(void)timerfd_settime(exporter->timer, 0, &times, NULL);
	return pause;
}

void exporter_ended(struct exporter *exporter)
{
	int status = processes_wait(exporter->process.pidfd);
	uint32_t pause;

	close(exporter->process.pidfd); /* leaves every epoll set with it */
	exporter->is_live = false;
	if (now_ms() - exporter->started >= LONG_MS)
		exporter->n_short = 0;
	pause = start_later(exporter);
	if (status >= 0 && WIFSIGNALED(status))
		log_event(LOG_WARNING, LOG_NO_VM,
			  "the exporter was killed by signal %d (%s)%s; it is started again in "
			  "%" PRIu32 " ms",
			  WTERMSIG(status),
			  sigabbrev_np(WTERMSIG(status)) ? sigabbrev_np(WTERMSIG(status)) : "?",
			  WTERMSIG(status) == SIGSYS ? ": its system-call filter" : "", pause);
	else
		log_event(LOG_WARNING, LOG_NO_VM,
			  "the exporter ended with exit code %d; it is started again in "
			  "%" PRIu32 " ms",
			  status < 0 ? -1 : WEXITSTATUS(status), pause);
}

void exporter_retry(struct exporter *exporter)
{
	uint64_t n_expired;

	if (read(exporter->timer, &n_expired, sizeof(n_expired)) != sizeof(n_expired))
		return;
	if (!exporter->is_live && exporter_start(exporter) < 0)
		(void)start_later(exporter);
}

void exporter_end(struct exporter *exporter)
{
	if (exporter->is_live) {
		(void)syscall(SYS_pidfd_send_signal, exporter->process.pidfd, SIGKILL, NULL, 0u);
		(void)processes_wait(exporter->process.pidfd);
		close(exporter->process.pidfd);
	}
	if (exporter->timer >= 0)
		close(exporter->timer);
	*exporter = (struct exporter){.timer = -1};
}
