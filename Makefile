# blkcache - build, test, install. `make help` lists the targets.
#
# Knobs: CONFIG=release|debug|asan|tsan  CC=...  PREFIX=/usr/local  DESTDIR=  V=1 (show commands)  J=N (parallel tests)

CONFIG  ?= release
BUILD   ?= build/$(CONFIG)
PREFIX  ?= /usr/local
CC      ?= gcc
J       ?= $(shell nproc)
VERSION := 0.1.0
LAYERS  ?= util bdev buffer journal engine/map engine/policy engine engine/durable engine/request engine/work engine/life export control daemon

PKGS      := fuse3 liburing sqlite3 jansson libisal
CSTD      := -std=gnu17 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DFUSE_USE_VERSION=314 -DBLKCACHE_VERSION='"$(VERSION)"'
WARN      := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wno-missing-field-initializers
OPT_release := -O2 -g -DNDEBUG
OPT_debug   := -O0 -g3
OPT_asan    := -O1 -g -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined
OPT_tsan    := -O1 -g -fsanitize=thread -fno-omit-frame-pointer -Wno-tsan # fences: what they order is atomic
OPT       := $(OPT_$(CONFIG))
CPPFLAGS_ := $(CSTD) -Iinclude -Isrc $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
CFLAGS_   := $(WARN) $(OPT) -pthread -fno-strict-aliasing $(CFLAGS)
LIBS      := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -linih -lpthread -lm
Q         := $(if $(V),,@)

LIB_SRC  := $(foreach l,$(LAYERS),$(wildcard src/$(l)/*.c))
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o)
CMD_OBJ  := $(patsubst %.c,$(BUILD)/%.o,$(wildcard cmd/*.c))
LIB      := $(BUILD)/libblkcache.a
BIN      := $(BUILD)/blkcache
UNIT_SRC := $(wildcard tests/unit/test_*.c)
UNIT     := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/tests/%)
HELPERS  := $(patsubst tests/tools/%.c,$(BUILD)/tools/%,$(wildcard tests/tools/*.c)) $(BUILD)/tools/failnth.so $(BUILD)/tools/mute.so
BENCHES  := $(patsubst tests/bench/%.c,$(BUILD)/bench/%,$(wildcard tests/bench/*.c))
TSAN     := $(patsubst tests/tsan/%.c,$(BUILD)/tsan/%,$(wildcard tests/tsan/*.c))
WHOLE    := -Wl,--whole-archive $(LIB) -Wl,--no-whole-archive

# Headers that are missing would be many errors that say less.
ifneq ($(filter-out help deps clean demo check,$(or $(MAKECMDGOALS),all)),)
ifneq ($(shell pkg-config --exists $(PKGS) 2>/dev/null && echo yes),yes)
$(warning packages are missing that the build needs; run "make deps" first (as root))
endif
endif

.PHONY: all help deps demo check check-unit check-cli check-tree check-long asan tsan valgrind bench install uninstall format format-check lint clean
.SECONDARY:
all: $(BIN) ## build the program

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

deps: ## install the Debian packages that are missing (contrib/packages.debian)
	$(Q)contrib/install-packages contrib/packages.debian

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC    $<")
	$(Q)$(CC) $(CPPFLAGS_) $(CFLAGS_) -MMD -MP -c $< -o $@

$(LIB): $(LIB_OBJ)
	$(if $(V),,@echo "  AR    $@")
	$(Q)rm -f $@ && ar rcs $@ $^

$(BIN): $(CMD_OBJ) $(LIB)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(OPT) $(LDFLAGS) -pthread $(CMD_OBJ) $(WHOLE) $(LIBS) -o $@

$(BUILD)/tests/%: $(BUILD)/tests/unit/%.o $(LIB)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(OPT) $(LDFLAGS) -pthread $< $(WHOLE) $(LIBS) -lcriterion -o $@

$(BUILD)/tsan/%: $(BUILD)/tests/tsan/%.o $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(OPT) $(LDFLAGS) -pthread $< $(WHOLE) $(LIBS) -o $@

$(BUILD)/tools/%.so: tests/faults/%.c
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(CSTD) $(WARN) -O2 -g -fPIC -shared $< -o $@

$(BUILD)/tests/unit/%.o: CPPFLAGS_ += -include tests/unit/slow.h

# Test tools look at the program from outside and share no code with it.
$(BUILD)/tools/%: $(BUILD)/tests/tools/%.o
	@mkdir -p $(@D)
	$(Q)$(CC) $(OPT) $(LDFLAGS) -pthread $< -o $@

$(BUILD)/bench/floor: $(BUILD)/tests/bench/floor.o
	@mkdir -p $(@D)
	$(Q)$(CC) $(OPT) $(LDFLAGS) -pthread $< $(shell pkg-config --libs fuse3) -o $@

$(BUILD)/bench/%: $(BUILD)/tests/bench/%.o $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(OPT) $(LDFLAGS) -pthread $< $(WHOLE) $(LIBS) -o $@

# The power-loss rig: the library, with its calls on files sent to a recorder (tests/crash/syscalls.c).
RIG      := $(BUILD)/crash/rig
RIG_OBJ  := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/crash/*.c))
RIG_WRAP := open64 openat64 close fsync fdatasync stat64 lstat64 fstat64 fstatat64 pread64 pwrite64 ftruncate64 fallocate64 \
	    unlink unlinkat renameat2
$(RIG): $(RIG_OBJ) $(LIB)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD    $@")
	$(Q)$(CC) $(OPT) $(LDFLAGS) -pthread $(RIG_WRAP:%=-Wl,--wrap=%) $(RIG_OBJ) $(WHOLE) $(LIBS) -o $@

# ---- manual page ----

MAN := contrib/man/blkcache.1
$(BUILD)/counters.man: contrib/man/counters.c include/blkcache/counters.h
	@mkdir -p $(@D)
	$(Q)$(CC) $(CSTD) $(WARN) -Iinclude $< -o $(BUILD)/counters && $(BUILD)/counters >$@

.PHONY: man
man: $(BUILD)/counters.man ## bring the manual page's generated sections up to date
	$(Q)sed -i -e '/counters:begin/,/counters:end/{/counters:/!d}' -e '/counters:begin/r $<' $(MAN)

# ---- tests ----

.PHONY: tests
tests: $(BIN) $(UNIT) $(HELPERS) $(RIG) $(BUILD)/bench/engine $(BUILD)/counters.man ## build the program, the unit tests and the test tools

check: deps ## everything: install what is missing, build, run all tests; the last line has the totals
	$(Q)$(MAKE) --no-print-directory tests
	$(Q)BUILD=$(BUILD) J=$(J) tests/run

check-unit: $(UNIT) ## unit tests only
	$(Q)BUILD=$(BUILD) J=$(J) tests/run unit

check-cli: $(BIN) $(HELPERS) $(RIG) ## black-box tests only (SOAK=N: N times as long)
	$(Q)BUILD=$(BUILD) J=$(J) tests/run cli

check-tree: $(BIN) $(BUILD)/bench/engine ## checks of the tree: includes, documents, instruction budgets
	$(Q)BUILD=$(BUILD) J=$(J) tests/run checks

check-long: deps ## what takes long: the soak, power losses, kills (SOAK=N CRASH_STATES=100000 CYCLES=15 KILLS=15)
	$(Q)$(MAKE) --no-print-directory tests
	$(Q)BUILD=$(BUILD) J=$(J) CRASH_STATES=$(CRASH_STATES) SEED=$(SEED) CYCLES=$${CYCLES:-15} KILLS=$${KILLS:-15} \
		TEST_LIMIT=$${TEST_LIMIT:-36000} tests/run long

asan: ## all tests, built with the address and undefined-behaviour sanitizers
	$(Q)LSAN_OPTIONS=suppressions=$(CURDIR)/tests/lsan.supp:print_suppressions=0 $(MAKE) --no-print-directory check CONFIG=asan

tsan: ## the torture programs of tests/tsan, built with the thread sanitizer (Criterion does not start under it)
	$(Q)$(MAKE) --no-print-directory run-tsan CONFIG=tsan

.PHONY: run-tsan
run-tsan: $(TSAN)
	$(Q)for t in $(TSAN); do echo "  RUN   $$t"; $$t || exit 1; done

CRASH_STATES ?= 100000
SEED         ?= 1
.PHONY: crash crash-mutations
crash: $(RIG) ## power-loss rig, the full run (CRASH_STATES=100000 SEED=1)
	$(Q)$(RIG) --states $(CRASH_STATES) --seed $(SEED) --shrink

crash-mutations: ## leave out each step of the durability protocol in turn: the rig must notice
	$(Q)$(MAKE) --no-print-directory BUILD=$(BUILD)/mutate CFLAGS="$(CFLAGS) -DBLKCACHE_MUTATE" $(BUILD)/mutate/crash/rig
	$(Q)$(BUILD)/mutate/crash/rig --states 12000 --per-workload 100 --seed $(SEED) --mutations

CUTS ?= 20
.PHONY: check-kernels
check-kernels: ## the tests, and CUTS=20 power cuts, on Debian's kernel in an emulated machine (hours; tests/kernel/README.md)
	$(Q)contrib/install-packages contrib/packages.kernel.debian
	$(Q)tests/kernel/boot.sh build
	$(Q)tests/kernel/boot.sh task unit 7200
	$(Q)tests/kernel/boot.sh task cli 14400
	$(Q)tests/kernel/boot.sh powercut $(CUTS) volatile
	$(Q)tests/kernel/boot.sh powercut 3 control

demo: deps ## show the main job from end to end (under two minutes, needs root)
	$(Q)$(MAKE) --no-print-directory $(BIN)
	$(Q)BLKCACHE=$(BIN) contrib/demo/demo.sh

# ---- benches (tests/bench/README.md) ----

.PHONY: bench-build bench-deps
bench: bench-build ## all benches, or PART="engine instructions fuse delay misses db scale"; BENCH_QUICK=1: short. Tables and plots in BUILD/bench/results
	$(Q)BUILD=$(BUILD) tests/bench/run.sh $(PART)

bench-build: $(BIN) $(BENCHES) ## build what the benches need

bench-deps: ## install the Debian packages that only the benches use (contrib/packages.bench.debian)
	$(Q)contrib/install-packages contrib/packages.bench.debian

# ---- install ----

SYSTEMD_DIR ?= $(PREFIX)/lib/systemd/system

install: $(BIN) ## install program, man page, completion, unit and example configuration below PREFIX
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/blkcache
	install -D -m 644 contrib/man/blkcache.1 $(DESTDIR)$(PREFIX)/share/man/man1/blkcache.1
	install -D -m 644 contrib/completion/blkcache.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/blkcache
	install -D -m 644 blkcache.conf.example $(DESTDIR)$(PREFIX)/share/doc/blkcache/blkcache.conf.example
	install -d $(DESTDIR)$(SYSTEMD_DIR)
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' contrib/systemd/blkcache@.service >$(DESTDIR)$(SYSTEMD_DIR)/blkcache@.service

uninstall: ## remove what install put there
	rm -f $(DESTDIR)$(PREFIX)/bin/blkcache $(DESTDIR)$(PREFIX)/share/man/man1/blkcache.1 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/blkcache $(DESTDIR)$(SYSTEMD_DIR)/blkcache@.service
	rm -rf $(DESTDIR)$(PREFIX)/share/doc/blkcache

# ---- habits ----

SOURCES = $(shell git ls-files '*.c' '*.h')

format: ## clang-format all sources
	clang-format -i $(SOURCES)

format-check: ## fail if a source is not formatted
	clang-format --dry-run --Werror $(SOURCES)

lint: ## clang-tidy and shellcheck
	clang-tidy --quiet $(filter src/% cmd/%,$(filter %.c,$(SOURCES))) -- $(CPPFLAGS_) $(WARN)
	shellcheck -x -P SCRIPTDIR $(shell git ls-files '*.sh') contrib/install-packages .ci/run tests/run tests/valgrind tests/kernel/guest/init

valgrind: ## unit tests under valgrind memcheck (tests/valgrind says which, and why not the others)
	$(Q)$(MAKE) --no-print-directory run-valgrind CONFIG=debug

.PHONY: run-valgrind
run-valgrind: $(UNIT)
	$(Q)BUILD=$(BUILD) J=$(J) tests/valgrind

clean: ## remove everything built
	rm -rf build

include tests/sched/sched.mk

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
