# SPDX-License-Identifier: BSD-3-Clause
#
# Part of the Makefile in the root.

# The scheduler (tests/sched/README.md): the library with every atomic operation a call (sent to tests/sched/atomics.c),
# tiny caches, and its threads, locks, clocks and files sent to what stands for them. In a build folder of its own.
SCHED_BUILD := $(BUILD)/scheduled
SCHED       := $(SCHED_BUILD)/sched/sched
SCHED_FLAGS := -DBLKCACHE_MUTATE -DCACHE_MIN_SIZE=65536u -DCACHE_MIN_RAM=65536u
SCHED_OBJ   := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/sched/*.c) $(filter-out %/rig.c,$(wildcard tests/crash/*.c)))
SCHED_WRAP  := $(RIG_WRAP) preadv64 pwritev64 flock io_uring_queue_init getrandom mmap64 munmap madvise \
	pthread_mutex_lock pthread_mutex_trylock pthread_mutex_clocklock pthread_mutex_timedlock pthread_mutex_unlock \
	pthread_mutex_destroy \
	pthread_cond_wait pthread_cond_timedwait pthread_cond_clockwait pthread_cond_signal pthread_cond_broadcast \
	pthread_cond_destroy pthread_rwlock_init pthread_rwlock_destroy pthread_rwlock_rdlock pthread_rwlock_tryrdlock \
	pthread_rwlock_wrlock pthread_rwlock_trywrlock pthread_rwlock_unlock pthread_create pthread_join pthread_detach \
	pthread_self pthread_setname_np pthread_key_create pthread_key_delete \
	pthread_getspecific pthread_setspecific nanosleep clock_nanosleep usleep sched_yield clock_gettime
ifdef SCHEDULED
$(LIB_OBJ): CFLAGS_ += $(SCHED_FLAGS) -fsanitize=thread --param=tsan-instrument-func-entry-exit=0 -Wno-tsan
$(SCHED_OBJ): CFLAGS_ += $(SCHED_FLAGS) -Itests/crash
$(BUILD)/sched/sched: $(SCHED_OBJ) $(LIB)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(OPT) $(LDFLAGS) -pthread $(SCHED_WRAP:%=-Wl,--wrap=%) $(SCHED_OBJ) $(WHOLE) $(LIBS) -o $@
	$(Q)if nm -D -u $@ | grep -E ' (pthread_(mutex|rwlock|cond)_.*(lock|wait|signal|broadcast)|pthread_.*join|sem_)'; then \
		echo 'that is not under the scheduler yet: tests/sched/sync.c, SCHED_WRAP'; rm $@; exit 1; fi
endif
.PHONY: sched-build
sched-build: ## build the scheduler
	$(Q)$(MAKE) --no-print-directory SCHEDULED=1 BUILD=$(SCHED_BUILD) $(SCHED)

# only the plain build: a sanitizer would want to know about every change of stack
ifeq ($(CONFIG),release)
tests check-cli: sched-build
endif

SCHEDULES ?= 200000
.PHONY: sched sched-mutations
sched: sched-build ## the engine under a scheduler of our own (SCHEDULES=200000 SEED=1); tests/sched/README.md
	$(Q)$(SCHED) --schedules $(SCHEDULES) --seed $(SEED)

sched-mutations: sched-build ## leave out each step whose absence only a schedule shows: it must be noticed
	$(Q)$(SCHED) --schedules 1000000 --seed $(SEED) --races
