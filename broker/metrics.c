/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/metrics.h"

#include <inttypes.h>
#include <stdio.h>

#include "broker/control.h"
#include "broker/front.h"
#include "ipc/observation.h"

/* One line of a VM. */
struct sample {
	const char *suffix; /* of the name of the family */
	const char *labels; /* behind that of the VM; each begins with a comma */
	uint64_t (*value)(const struct device *device, uint32_t argument);
	uint32_t argument;
	int digits; /* that are behind the point, of seconds; 0: a count */
};

/* Its lines are those of the first VM, in order, then those of the second one. */
struct family {
	const char *name, *type, *help;
	const struct sample *samples;
	uint32_t n_samples;
};

static uint64_t counted(const struct device *device, uint32_t counter)
{
	return query_counter(device, (enum counter)counter);
}

static uint64_t is_in_state(const struct device *device, uint32_t state)
{
	return control_vm_state(device) == (enum control_vm_state)state;
}

static uint64_t connections(const struct device *device, uint32_t unused)
{
	(void)unused;
	return device->endpoints.n_used;
}

static uint64_t connections_limit(const struct device *device, uint32_t unused)
{
	(void)unused;
	return device->limits.max_connections;
}

static uint64_t workers_lost(const struct device *device, uint32_t unused)
{
	(void)unused;
	return device->n_lost;
}

static uint64_t sandbox_kills(const struct device *device, uint32_t unused)
{
	(void)unused;
	return device->n_sandbox_kills;
}

/* Buckets are cumulative: all times up to this one. The argument is its counter. */
static uint64_t times_up_to(const struct device *device, uint32_t counter)
{
	uint32_t first = counter >= COUNTER_HOST_CONNECT_TIMES ? COUNTER_HOST_CONNECT_TIMES
							       : COUNTER_GUEST_CONNECT_TIMES;
	uint64_t n = 0;

	for (uint32_t i = first; i <= counter; i++)
		n += counted(device, i);
	return n;
}

/* The same of pauses: the argument is the bucket. */
static uint64_t pauses_up_to(const struct device *device, uint32_t bucket)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i <= bucket; i++)
		n += device->pauses.n[i];
	return n;
}

static uint64_t pauses_us(const struct device *device, uint32_t unused)
{
	(void)unused;
	return device->pauses.us;
}

static const struct sample state_samples[] = {
	{"", ",vsockd_vm_state=\"waiting\"", is_in_state, CONTROL_VM_WAITING, 0},
	{"", ",vsockd_vm_state=\"starting\"", is_in_state, CONTROL_VM_STARTING, 0},
	{"", ",vsockd_vm_state=\"stopped\"", is_in_state, CONTROL_VM_STOPPED, 0},
	{"", ",vsockd_vm_state=\"running\"", is_in_state, CONTROL_VM_RUNNING, 0},
	{"", ",vsockd_vm_state=\"quarantine\"", is_in_state, CONTROL_VM_QUARANTINE, 0},
	{"", ",vsockd_vm_state=\"suspended\"", is_in_state, CONTROL_VM_SUSPENDED, 0},
	{"", ",vsockd_vm_state=\"failed\"", is_in_state, CONTROL_VM_FAILED, 0},
};

static const struct sample connections_samples[] = {{"", "", connections, 0, 0}};
static const struct sample limit_samples[] = {{"", "", connections_limit, 0, 0}};
static const struct sample lost_samples[] = {{"_total", "", workers_lost, 0, 0}};
static const struct sample kills_samples[] = {{"_total", "", sandbox_kills, 0, 0}};

static const struct sample bytes_samples[] = {
	{"_total", ",direction=\"to_guest\"", counted, COUNTER_TO_GUEST_BYTES, 0},
	{"_total", ",direction=\"from_guest\"", counted, COUNTER_FROM_GUEST_BYTES, 0},
};

static const struct sample packets_samples[] = {
	{"_total", ",direction=\"to_guest\"", counted, COUNTER_TO_GUEST_PACKETS, 0},
	{"_total", ",direction=\"from_guest\"", counted, COUNTER_FROM_GUEST_PACKETS, 0},
};

#define BY_GUEST(result, counter)                                                                  \
	{                                                                                          \
		"_total", ",from=\"guest\",result=\"" result "\"", counted, counter, 0             \
	}
#define BY_HOST(result, counter)                                                                   \
	{                                                                                          \
		"_total", ",from=\"host\",result=\"" result "\"", counted, counter, 0              \
	}

static const struct sample connects_samples[] = {
	BY_GUEST("ok", COUNTER_GUEST_CONNECTED),
	BY_GUEST("refused", COUNTER_GUEST_REFUSED),
	BY_GUEST("limit", COUNTER_GUEST_LIMITED),
	BY_HOST("ok", COUNTER_HOST_CONNECTED),
	BY_HOST("refused", COUNTER_HOST_REFUSED),
	BY_HOST("no_answer", COUNTER_HOST_NO_ANSWER),
	BY_HOST("handshake_malformed", COUNTER_HANDSHAKE_MALFORMED),
	BY_HOST("handshake_timeout", COUNTER_HANDSHAKE_TIMEOUT),
	BY_HOST("handshake_ended", COUNTER_HANDSHAKE_ENDED),
	BY_HOST("handshake_limit", COUNTER_HANDSHAKE_LIMITED),
	BY_HOST("denied", COUNTER_HOST_DENIED),
};

static uint64_t refusals(const struct device *device, uint32_t refusal)
{
	/* The worker reads for which port a host program asks. */
	return device->n_refusals[refusal] +
	       (refusal == REFUSAL_INCOMING_PORT ? counted(device, COUNTER_HOST_DENIED) : 0);
}

static const struct sample refusals_samples[] = {
	{"_total", ",reason=\"outgoing_port\"", refusals, REFUSAL_OUTGOING_PORT, 0},
	{"_total", ",reason=\"incoming_port\"", refusals, REFUSAL_INCOMING_PORT, 0},
	{"_total", ",reason=\"connection_rate\"", refusals, REFUSAL_CONNECTION_RATE, 0},
	{"_total", ",reason=\"user\"", refusals, REFUSAL_PEER, 0},
	{"_total", ",reason=\"buffer_memory\"", counted, COUNTER_MEMORY_REFUSED, 0},
};

static const struct sample waits_samples[] = {{"_total", "", counted, COUNTER_BANDWIDTH_WAITS, 0}};
static const struct sample stalls_samples[] = {{"_total", "", counted, COUNTER_CREDIT_STALLS, 0}};
static const struct sample starved_samples[] = {{"_total", "", counted, COUNTER_RX_STARVED, 0}};
static const struct sample dropped_samples[] = {{"_total", "", counted, COUNTER_DROPPED, 0}};

/* The bounds are those of COUNTER_TIMES_MS (test_query). */
#define TIMES(from, times, sum)                                                                    \
	{"_bucket", from ",le=\"0.001\"", times_up_to, (times) + 0, 0},                            \
		{"_bucket", from ",le=\"0.002\"", times_up_to, (times) + 1, 0},                    \
		{"_bucket", from ",le=\"0.005\"", times_up_to, (times) + 2, 0},                    \
		{"_bucket", from ",le=\"0.01\"", times_up_to, (times) + 3, 0},                     \
		{"_bucket", from ",le=\"0.02\"", times_up_to, (times) + 4, 0},                     \
		{"_bucket", from ",le=\"0.05\"", times_up_to, (times) + 5, 0},                     \
		{"_bucket", from ",le=\"0.1\"", times_up_to, (times) + 6, 0},                      \
		{"_bucket", from ",le=\"0.2\"", times_up_to, (times) + 7, 0},                      \
		{"_bucket", from ",le=\"0.5\"", times_up_to, (times) + 8, 0},                      \
		{"_bucket", from ",le=\"1.0\"", times_up_to, (times) + 9, 0},                      \
		{"_bucket", from ",le=\"2.0\"", times_up_to, (times) + 10, 0},                     \
		{"_bucket", from ",le=\"+Inf\"", times_up_to, (times) + 11, 0},                    \
		{"_count", from, times_up_to, (times) + 11, 0},                                    \
	{                                                                                          \
		"_sum", from, counted, sum, 3                                                      \
	}

static const struct sample times_samples[] = {
	TIMES(",from=\"guest\"", COUNTER_GUEST_CONNECT_TIMES, COUNTER_GUEST_CONNECT_MS),
	TIMES(",from=\"host\"", COUNTER_HOST_CONNECT_TIMES, COUNTER_HOST_CONNECT_MS),
};

/* The bounds are those of PAUSES_US (test_query). */
#define PAUSE_BUCKET(bound, bucket)                                                                \
	{                                                                                          \
		"_bucket", ",le=\"" bound "\"", pauses_up_to, bucket, 0                            \
	}
static const struct sample pauses_samples[] = {
	PAUSE_BUCKET("0.0005", 0),
	PAUSE_BUCKET("0.001", 1),
	PAUSE_BUCKET("0.002", 2),
	PAUSE_BUCKET("0.005", 3),
	PAUSE_BUCKET("0.01", 4),
	PAUSE_BUCKET("0.02", 5),
	PAUSE_BUCKET("0.05", 6),
	PAUSE_BUCKET("0.1", 7),
	PAUSE_BUCKET("0.5", 8),
	PAUSE_BUCKET("+Inf", 9),
	{"_count", "", pauses_up_to, 9, 0},
	{"_sum", "", pauses_us, 0, 6},
};

#define SAMPLES(samples) samples, sizeof(samples) / sizeof((samples)[0])

static const struct family families[] = {
	{"vsockd_vm_state", "stateset", "What the VM is in.", SAMPLES(state_samples)},
	{"vsockd_connections", "gauge", "Connections at the moment.", SAMPLES(connections_samples)},
	{"vsockd_connections_limit", "gauge", "Connections that there may be.",
	 SAMPLES(limit_samples)},
	{"vsockd_bytes", "counter", "Bytes of streams.", SAMPLES(bytes_samples)},
	{"vsockd_packets", "counter", "Packets of any kind.", SAMPLES(packets_samples)},
	{"vsockd_connects", "counter", "Connections that were asked for.",
	 SAMPLES(connects_samples)},
	{"vsockd_refusals", "counter", "Connections that a rule or a rate refused.",
	 SAMPLES(refusals_samples)},
	{"vsockd_bandwidth_waits", "counter", "Bytes had to wait because of max-bandwidth.",
	 SAMPLES(waits_samples)},
	{"vsockd_connect_duration_seconds", "histogram", "From the question to the answer.",
	 SAMPLES(times_samples)},
	{"vsockd_credit_stalls", "counter", "Bytes for the guest had to wait for its credit.",
	 SAMPLES(stalls_samples)},
	{"vsockd_rx_starved", "counter", "Packets for the guest had to wait for rx buffers.",
	 SAMPLES(starved_samples)},
	{"vsockd_packets_dropped", "counter", "Packets that deserved no answer.",
	 SAMPLES(dropped_samples)},
	{"vsockd_workers_lost", "counter", "Workers that died.", SAMPLES(lost_samples)},
	{"vsockd_sandbox_kills", "counter", "Workers that died of a forbidden system call.",
	 SAMPLES(kills_samples)},
	{"vsockd_replacement_pause_seconds", "histogram",
	 "How long guest and host programs waited while a worker was replaced.",
	 SAMPLES(pauses_samples)},
};
#define N_FAMILIES (sizeof(families) / sizeof(families[0]))

enum { LINE_TYPE, LINE_HELP, LINE_SAMPLES };

static void print_sample(const struct device *device, const struct family *family,
			 const struct sample *sample, char line[static METRICS_LINE_MAX])
{
	uint64_t value = sample->value(device, sample->argument);
	char number[48];

	if (sample->digits == 3)
		snprintf(number, sizeof(number), "%" PRIu64 ".%03" PRIu64, value / 1000,
			 value % 1000);
	else if (sample->digits == 6)
		snprintf(number, sizeof(number), "%" PRIu64 ".%06" PRIu64, value / 1000000,
			 value % 1000000);
	else
		snprintf(number, sizeof(number), "%" PRIu64, value);
	snprintf(line, METRICS_LINE_MAX, "%s%s{vm=\"%" PRIu64 "\"%s} %s\n", family->name,
		 sample->suffix, device->configuration->guest_cid, sample->labels, number);
}

static void next_device(const struct front *front, struct metrics_position *position)
{
	position->sample = 0;
	if (++position->device >= front->n_devices)
		*position = (struct metrics_position){.family = position->family + 1};
}

static void next_sample(const struct front *front, struct metrics_position *position)
{
	if (++position->sample == families[position->family].n_samples)
		next_device(front, position);
}

/* Places of VMs that have gone. */
static void skip_absent(const struct front *front, struct metrics_position *position)
{
	while (position->family < N_FAMILIES && position->line == LINE_SAMPLES &&
	       !device_is_present(&front->devices[position->device]))
		next_device(front, position);
}

bool metrics_line(const struct front *front, struct metrics_position *position,
		  char line[static METRICS_LINE_MAX])
{
	const struct family *family;

	skip_absent(front, position);
	if (position->family > N_FAMILIES)
		return false;
	if (position->family == N_FAMILIES) {
		snprintf(line, METRICS_LINE_MAX, "# EOF\n");
		position->family++;
		return true;
	}
	family = &families[position->family];
	if (position->line == LINE_TYPE) {
		snprintf(line, METRICS_LINE_MAX, "# TYPE %s %s\n", family->name, family->type);
		position->line = LINE_HELP;
	} else if (position->line == LINE_HELP) {
		snprintf(line, METRICS_LINE_MAX, "# HELP %s %s\n", family->name, family->help);
		position->line = LINE_SAMPLES;
	} else {
		print_sample(&front->devices[position->device], family,
			     &family->samples[position->sample], line);
		next_sample(front, position);
	}
	return true;
}
