/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The device beside its model, step by step, in orders drawn by fixed seeds. DEVICE_MODEL_SEED
 * in the environment runs one of them, and any other number, alone.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/unit/device_model.h"

#define SEEDS 60
#define STEPS 2000

static uint32_t choose(void *context, uint32_t n)
{
	uint64_t *random = context;

	*random = *random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(*random >> 33) % n;
}

static bool go_on(void *context)
{
	(void)context;
	return true;
}

static void run_seed(uint64_t seed)
{
	uint64_t random = seed * UINT64_C(0x9e3779b97f4a7c15);
	const struct model_choices choices = {choose, go_on, &random};

	model_run(&choices, STEPS);
}

static void test_a_device_does_what_its_model_does(void **state)
{
	const char *chosen = getenv("DEVICE_MODEL_SEED");
	uint32_t n_packets[8] = {0};

	(void)state;
	if (chosen) {
		run_seed(strtoull(chosen, NULL, 0));
		return;
	}
	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		/* The last line before a failure. */
		printf("seed %llu\n", (unsigned long long)seed);
		run_seed(seed);
		for (size_t i = 0; i < 8; i++)
			n_packets[i] += model.n_packets[i];
	}
	/* It was of use: every kind of packet was seen, and many of them. */
	for (uint32_t op = PACKET_OP_REQUEST; op <= PACKET_OP_CREDIT_REQUEST; op++)
		assert_in_range(n_packets[op], 50, UINT32_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_device_does_what_its_model_does),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
