/* SPDX-License-Identifier: BSD-3-Clause */
/* The engine's torture (tests/unit/engine_torture.h) with a plain main(), since Criterion does not run under the thread
 * sanitizer. Ends with 0, or is aborted. */
#define ENGINE_PLAIN
#include "../unit/engine_torture.h"
#include "tsan.h"

int main(void)
{
	torture_run(2 * MIB, 4096, CACHE_MIN_RAM, true, 3);
	torture_run(2 * MIB, 65536, CACHE_MIN_RAM, true, 3);
	torture_run(16 * MIB, 8192, 4 * MIB, true, 3);
	puts("ok");
	return 0;
}
