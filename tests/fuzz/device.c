/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A worker's device beside its model (tests/unit/device_model.h): here the input chooses
 * what guest, host programs and front do.
 */

#include <stdlib.h>

#include "tests/fuzz/fuzz.h"
#include "tests/unit/device_model.h"

#define STEPS_MAX 400

static uint32_t choose(void *context, uint32_t n)
{
	return input_below(context, n);
}

static bool goes_on(void *context)
{
	const struct input *input = context;

	return input->len > 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	return setenv("CMOCKA_TEST_ABORT", "1", 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct input input = {bytes, len};
	const struct model_choices choices = {choose, goes_on, &input};
	size_t n_fds = fuzz_count_fds();

	model_run(&choices, STEPS_MAX);
	CLAIM(fuzz_count_fds() == n_fds);
	return 0;
}
