/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The figures of a run, for people. */

#include "tests/bench/results.h"

/* Names of tests, metrics and candidates: what main.c fills in and the outputs look up. */
#define TEST_FROM_GUEST	     "guest to host"
#define TEST_FROM_HOST	     "host to guest"
#define TEST_DUPLEX	     "both at once"
#define TEST_ROUND_TRIP	     "round trip"
#define TEST_OPENED_BY_GUEST "opened by the guest"
#define TEST_OPENED_BY_HOST  "opened by the host"
#define TEST_MEMORY	     "memory"

#define METRIC_RATE	       "MiB/s"
#define METRIC_CPU	       "CPU s/GiB"
#define METRIC_ENDS_CPU	       "both ends: CPU s/GiB"
#define METRIC_SWITCHES	       "switches/MiB"
#define METRIC_CALLS	       "calls/MiB"
#define METRIC_INSTRUCTIONS    "instructions/MiB"
#define METRIC_SLOWEST	       "slowest/mean"
#define METRIC_GUEST_SHARE     "guest's share"
#define METRIC_P50	       "p50 us"
#define METRIC_P99	       "p99 us"
#define METRIC_P999	       "p99.9 us"
#define METRIC_OPENED	       "connections/s"
#define METRIC_OPENED_CPU      "CPU us/connection"
#define METRIC_OPENED_SWITCHES "switches/connection"

#define METRIC_RESIDENT		     "all: resident KiB"
#define METRIC_PSS		     "all: PSS KiB"
#define METRIC_PRIVATE		     "all: private KiB"
#define METRIC_PER_CONNECTION	     "all: bytes a connection"
#define METRIC_PEAK_RESIDENT	     "all: peak resident KiB"
#define METRIC_PEAK_PRIVATE	     "all: private KiB at peak"
#define METRIC_WORKER_RESIDENT	     "worker: resident KiB"
#define METRIC_WORKER_PRIVATE	     "worker: private KiB"
#define METRIC_WORKER_PER_CONNECTION "worker: bytes a connection"

#define CANDIDATE_LIMIT	 "limit"
#define CANDIDATE_VSOCKD "vsockd"
#define CANDIDATE_PEER	 "peer"

void report_print(const struct results *results);
