/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * atomics.c - every atomic operation of the library as a point. The library is compiled with -fsanitize=thread, which
 * makes each of them a call, and linked with these functions instead of the sanitizer's: they let the scheduler choose
 * who goes on, and then do it. (Order between processors is not modelled: one thread runs at a time. The sanitizer
 * itself looks for that, in tests/tsan.) Plain accesses are calls too, and nothing is done about them.
 */
#include <stdbool.h>
#include <stdint.h>

#include "fibers.h"

#define POINT(strong)                                                                                                  \
	(sched_caller = __builtin_return_address(0), sched_atomic_point((strong) && mo != __ATOMIC_RELAXED))

#pragma GCC diagnostic ignored "-Wmissing-prototypes"

/* ---- plain accesses ---- */

#define NOTHING(name)                                                                                                  \
	void __tsan_##name(void *p)                                                                                    \
	{                                                                                                              \
		(void)p;                                                                                               \
	}
#define SIZES(op) NOTHING(op##1) NOTHING(op##2) NOTHING(op##4) NOTHING(op##8) NOTHING(op##16)
SIZES(read)
SIZES(write)
SIZES(unaligned_read)
SIZES(unaligned_write)
SIZES(volatile_read)
SIZES(volatile_write)
NOTHING(func_entry)

void __tsan_func_exit(void)
{
}
void __tsan_init(void)
{
}
void __tsan_read_range(void *p, unsigned long n)
{
	(void)p, (void)n;
}
void __tsan_write_range(void *p, unsigned long n)
{
	(void)p, (void)n;
}

/* ---- atomic ones ---- */

#define RMW(T, bits, op)                                                                                               \
	T __tsan_atomic##bits##_fetch_##op(volatile T *a, T v, int mo)                                                 \
	{                                                                                                              \
		(void)mo;                                                                                              \
		POINT(true);                                                                                           \
		return __atomic_fetch_##op(a, v, __ATOMIC_SEQ_CST);                                                    \
	}

#define ATOMIC(T, bits)                                                                                                \
	T __tsan_atomic##bits##_load(const volatile T *a, int mo)                                                      \
	{                                                                                                              \
		(void)mo;                                                                                              \
		POINT(false);                                                                                          \
		return __atomic_load_n(a, __ATOMIC_SEQ_CST);                                                           \
	}                                                                                                              \
	void __tsan_atomic##bits##_store(volatile T *a, T v, int mo)                                                   \
	{                                                                                                              \
		(void)mo;                                                                                              \
		POINT(true);                                                                                           \
		__atomic_store_n(a, v, __ATOMIC_SEQ_CST);                                                              \
	}                                                                                                              \
	T __tsan_atomic##bits##_exchange(volatile T *a, T v, int mo)                                                   \
	{                                                                                                              \
		(void)mo;                                                                                              \
		POINT(true);                                                                                           \
		return __atomic_exchange_n(a, v, __ATOMIC_SEQ_CST);                                                    \
	}                                                                                                              \
	bool __tsan_atomic##bits##_compare_exchange_strong(volatile T *a, T *c, T v, int mo, int fail)                 \
	{                                                                                                              \
		(void)mo, (void)fail;                                                                                  \
		POINT(true);                                                                                           \
		return __atomic_compare_exchange_n(a, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                \
	}                                                                                                              \
	bool __tsan_atomic##bits##_compare_exchange_weak(volatile T *a, T *c, T v, int mo, int fail)                   \
	{                                                                                                              \
		(void)mo, (void)fail;                                                                                  \
		POINT(true);                                                                                           \
		return __atomic_compare_exchange_n(a, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                \
	}                                                                                                              \
	RMW(T, bits, add)                                                                                              \
	RMW(T, bits, sub)                                                                                              \
	RMW(T, bits, and)                                                                                              \
	RMW(T, bits, or)                                                                                               \
	RMW(T, bits, xor)

ATOMIC(uint8_t, 8)
ATOMIC(uint16_t, 16)
ATOMIC(uint32_t, 32)
ATOMIC(uint64_t, 64)

void __tsan_atomic_thread_fence(int mo)
{
	(void)mo;
}
void __tsan_atomic_signal_fence(int mo)
{
	(void)mo;
}
