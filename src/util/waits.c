/* SPDX-License-Identifier: BSD-3-Clause */
/* waits.c - see waits.h. */
#include "waits.h"

_Thread_local struct waits *thread_waits;
