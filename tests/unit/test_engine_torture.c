/* SPDX-License-Identifier: BSD-3-Clause */
/* test_engine_torture.c - see engine_torture.h: many threads on caches that are much too small, and on roomy ones. */
#include "engine_torture.h"

Test(engine_torture, small_lines_and_no_room, .timeout = 60)
{
	torture_run(2 * MIB, 4096, CACHE_MIN_RAM, false, 0.7);
}

Test(engine_torture, large_lines_and_no_room, .timeout = 60)
{
	torture_run(2 * MIB, 65536, CACHE_MIN_RAM, false, 0.7);
}

Test(engine_torture, managed_meanwhile, .timeout = 60)
{
	torture_run(4 * MIB, 4096, CACHE_MIN_RAM, true, 1);
}

Test(engine_torture, managed_meanwhile_8k_lines, .timeout = 60)
{
	torture_run(32 * MIB, 8192, 4 * MIB, true, 1);
}
