# The commands of this project; `make help` lists them.  Everything made here lands in $(VENV),
# build/ and dist/, and is made again only when what it depends on has changed.

PYTHON ?= python3
CC ?= cc
VENV ?= .venv
PORT ?= 8080

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet

# --- The environment ------------------------------------------------------------------------------

NATIVE := $(shell find csrc -name '*.[ch]') $(wildcard pyreactor/*.pyx pyreactor/*.pxd)
JOBS := $(shell nproc 2>/dev/null || echo 1)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.13 ..."; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || \
	    { echo "$(PYTHON) cannot make a virtual environment; on Debian: make deps"; exit 1; }
	@touch $@

# An editable installation: the checkout itself is what runs, from any folder.
$(VENV)/.installed: pyproject.toml setup.py | $(VENV)/.made
	$(PIP) 'setuptools>=77' 'Cython>=3.1'
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.built: $(NATIVE) $(VENV)/.installed
	$(PY) setup.py --quiet build_ext --inplace --parallel $(JOBS)
	@touch $@

# $(VENV)/.has-test holds what the extra `test` of pyproject.toml names, and so on.
$(VENV)/.has-%: pyproject.toml | $(VENV)/.made
	@$(PY) -c 'import sys, tomllib; \
	    project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	    print(*project["optional-dependencies"]["$*"], sep="\n")' > $(VENV)/$*.txt
	$(PIP) --requirement $(VENV)/$*.txt
	@touch $@

# Other projects' servers and clients, which are run on the loops that are compared.
$(VENV)/.has-frameworks: benchmarks/requirements.txt | $(VENV)/.made
	$(PIP) --requirement benchmarks/requirements.txt
	@touch $@

# The other loops: those that are built for this Python and machine.
PEERS := uvloop rloop rsloop zuvloop aiofastnet
$(VENV)/.has-peers: | $(VENV)/.made
	@for peer in $(PEERS); do \
	    $(PIP) --only-binary :all: $$peer 2>/dev/null || echo "no $$peer for this Python"; \
	done
	@touch $@

# --- The commands ---------------------------------------------------------------------------------

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PYTHON=$(PYTHON) and CC=$(CC) choose the tools, PORT=$(PORT) the port of make run."

.PHONY: run
run: build $(VENV)/.has-examples ## serve a web application on pyreactor until Ctrl-C
	@if [ -t 0 ] && command -v bash >/dev/null; then \
	    $(ALONE) '$(SERVE); exit $$?'; \
	else \
	    exec $(SERVE); \
	fi

SERVE := $(PY) examples/web.py --port $(PORT)
# In a process group of its own, so that Ctrl-C reaches the server and not this make, which would
# call the orderly end of the server an error.
ALONE := bash -mc

.PHONY: build
build: $(VENV)/.built ## build in place and install into the environment

.PHONY: test
test: build $(VENV)/.has-test $(VENV)/.has-frameworks
test: ## run every test, C and Python; ARGS are those of pytest
	@$(MAKE) --no-print-directory test-c asan tsan
	$(PY) -m pytest $(ARGS)
	@[ -n "$(ARGS)" ] || $(MAKE) --no-print-directory test-uring

# What differs most from epoll; PYREACTOR_BACKEND=io_uring before pytest runs any test.
URING_TESTS := backend files loop sendfile server sock streams transport zerocopy

.PHONY: test-uring
test-uring: build $(VENV)/.has-test ## run the tests of connections on the io_uring backend
	@if $(PY) -c 'import pyreactor; pyreactor.Loop(backend="io_uring").close()'; then \
	    PYREACTOR_BACKEND=io_uring $(PY) -m pytest -k pyreactor-io_uring \
	        $(URING_TESTS:%=tests/test_%.py); \
	else echo "SKIP  test-uring: this machine lacks io_uring"; fi

.PHONY: futures
futures: build $(VENV)/.has-test ## run all of CPython's tests of concurrent.futures on the pools
	PYREACTOR_ALL_FUTURES=1 $(PY) -m pytest tests/conformance/test_concurrent_futures.py $(ARGS)

.PHONY: soak
soak: build ## everything at once for ten minutes, with failing system calls; ARGS are the script's
	$(PY) tests/stress/soak.py $(or $(ARGS),--seconds 600)

# Another build of the extensions, beside the usual one.  The interpreter is not instrumented: the
# sanitizer has to be loaded before it, its allocator has to step aside, and what it holds at exit
# is no leak of ours.
ASAN_LIB := build/asan/lib

.PHONY: soak-asan
soak-asan: build ## the same with the extensions under AddressSanitizer
	CFLAGS='-O1 -g -fsanitize=address -fno-omit-frame-pointer' $(PY) setup.py --quiet build \
	    --build-lib $(ASAN_LIB) --build-temp build/asan/tmp --parallel $(JOBS)
	PYTHONPATH=$(abspath $(ASAN_LIB)) PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) \
	    $(PY) tests/stress/soak.py $(or $(ARGS),--seconds 600) --no-memory-check

.PHONY: bench
bench: build $(VENV)/.has-peers $(VENV)/.has-frameworks
bench: ## measure every row, for README.md and the plot; or what ARGS say
	$(PY) benchmarks/run.py $(or $(ARGS),--quick)
ifeq ($(ARGS),)
	$(PY) benchmarks/compare.py build/benchmarks/latest.json --update README.md
	$(PY) benchmarks/plot.py build/benchmarks/latest.json docs/benchmarks.svg
endif

.PHONY: lint
lint: build $(VENV)/.has-lint $(VENV)/.has-test ## check style, types and spelling
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	PATH="$(abspath $(VENV))/bin:$$PATH" cython-lint pyreactor
	$(VENV)/bin/codespell
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)
	$(VENV)/bin/mypy
	$(PY) -m mypy.stubtest pyreactor --allowlist tests/typing/stubtest_allowlist.txt
	@if command -v clang >/dev/null; then set -x; clang $(C_FLAGS) -fsyntax-only $(C_SOURCES); \
	else $(call missing,clang,second opinion of clang); fi

.PHONY: format
format: $(VENV)/.has-lint ## bring the code into the house's format
	$(VENV)/bin/ruff check --fix --quiet
	$(VENV)/bin/ruff format
	$(VENV)/bin/clang-format -i $(C_FILES)

.PHONY: wheel
wheel: $(VENV)/.installed ## build a wheel in dist/ and try it in an empty environment
	rm -rf build/lib* build/bdist* build/wheel dist
	$(PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --no-index dist/*.whl
	cd build && wheel/bin/pyreactor -c \
	    'import asyncio; print("a wheel on", asyncio.run(asyncio.sleep(0, "pyreactor")))'
	@ls dist/*.whl

# What the tests use besides Python packages, and what a bare Debian lacks to build at all.
PACKAGES := clang curl gcc libc6-dev openssl postgresql python3-dev python3-venv redis-server \
    strace wrk

.PHONY: deps
deps: ## install the Debian packages that building and testing use
	@if ! command -v apt-get >/dev/null; then \
	    echo "not Debian: install the equivalents of $(PACKAGES)"; exit 0; \
	fi; \
	lacking=$$(for package in $(PACKAGES); do \
	    dpkg -s $$package >/dev/null 2>&1 || echo $$package; \
	done); \
	[ -z "$$lacking" ] && exit 0; \
	if [ "$$(id -u)" != 0 ]; then root=sudo; fi; \
	set -ex; \
	$$root apt-get update -qq; \
	$$root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$lacking

.PHONY: clean
clean: ## remove everything that was made here
	rm -rf $(VENV) build dist *.egg-info pyreactor/*.so pyreactor/_*.c
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- The C tests ----------------------------------------------------------------------------------
# Each tests/c/test_*.c is a program of its own, linked with all of csrc/ and the other files of
# tests/c/, in three flavours: as it is, under ASan and UBSan, and under TSan.

C_FLAGS := -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wshadow -Werror -g -pthread -Icsrc/include
C_FLAGS_plain := -O2
C_FLAGS_asan := -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
C_FLAGS_tsan := -O1 -fno-omit-frame-pointer -fsanitize=thread

C_SOURCES := $(sort $(filter csrc/%.c,$(NATIVE)))
C_TESTS := $(sort $(wildcard tests/c/test_*.c)) tests/stress/queue_history.c
C_AIDS := $(filter-out $(C_TESTS),$(sort $(wildcard tests/c/*.c)))
C_FILES := $(sort $(filter csrc/%,$(NATIVE)) $(wildcard tests/c/*.[ch] tests/stress/*.c tests/fuzz/*.c tests/model/*.[ch] benchmarks/*/*.[ch]))

.PHONY: test-c asan tsan
test-c: c-plain ## run the C tests
asan: c-asan ## run the C tests under AddressSanitizer and UndefinedBehaviorSanitizer
tsan: c-tsan ## run the C tests under ThreadSanitizer

# The request queue for long: HISTORY_ITEMS through each topology, and SECONDS under TSan; as many
# random STEPS of the io_uring backend and of its operations; and the dispatchers for SECONDS.
HISTORY_ITEMS ?= 100000000
STEPS ?= 1000000
SECONDS ?= 600

.PHONY: stress
stress: build ## queue, io_uring and dispatchers for long; HISTORY_ITEMS, SECONDS, STEPS
	@$(MAKE) --no-print-directory build/c/plain/tests/stress/queue_history \
	    build/c/asan/tests/c/test_uring build/c/asan/tests/c/test_op \
	    build/c/tsan/tests/stress/queue_history
	for threads in 1x1 2x2 8x8; do \
	    build/c/plain/tests/stress/queue_history --threads $$threads --items $(HISTORY_ITEMS) && \
	    build/c/plain/tests/stress/queue_history --threads $$threads --items 1000000 --log \
	    || exit 1; \
	done
	build/c/asan/tests/c/test_uring $(STEPS)
	build/c/asan/tests/c/test_op $(STEPS)
	setarch -R build/c/tsan/tests/stress/queue_history --threads 4x4 --capacity 4 --log \
	    --items 100000 --seconds $(SECONDS)
	$(PY) tests/stress/dispatch.py --seconds $(SECONDS)

# The shared queue's processes, killed KILLS times at random and at each of their steps.
KILLS ?= 10000

.PHONY: crash
crash: ## kill the processes of a shared queue, again and again; KILLS
	@mkdir -p build/c
	$(CC) $(C_FLAGS) -O2 -DPR_CRASH_POINTS tests/stress/shared_crash.c -o build/c/shared_crash
	for policy in at-most-once at-least-once; do \
	    build/c/shared_crash $$policy $(KILLS) $$$$ || exit 1; \
	done

LINK_test_uring := -Wl,--wrap=realloc # so that it can fail

CASES ?= 10000000

.PHONY: fuzz
fuzz: $(VENV)/.made ## framers under sanitizers against a model; CASES random streams
	$(PY) tests/fuzz/framing.py --cases $(CASES)

# $(call flavour,NAME): how build/c/NAME/ is filled, and c-NAME, which runs what is in it.
define flavour
programs_$(1) := $(C_TESTS:%.c=build/c/$(1)/%)
objects_$(1) := $(patsubst %.c,build/c/$(1)/%.o,$(C_SOURCES) $(C_AIDS))

build/c/$(1)/%.o: %.c Makefile
	@mkdir -p $$(@D)
	@$$(CC) $$(C_FLAGS) $$(C_FLAGS_$(1)) -MMD -MP -c $$< -o $$@

$$(programs_$(1)): build/c/$(1)/%: build/c/$(1)/%.o $$(objects_$(1))
	@$$(CC) $$(C_FLAGS_$(1)) -pthread $$^ -ldl $$(LINK_$$(notdir $$@)) -o $$@

.PHONY: c-$(1) run-c-$(1)
run-c-$(1): $$(programs_$(1))
	@tests/c/run $(1) $$^
c-$(1):
	@mkdir -p build/c; \
	if echo 'int main(void) { return 0; }' | \
	    $$(CC) $$(C_FLAGS_$(1)) -x c - -o build/c/probe-$(1) 2>/dev/null; \
	then $$(MAKE) --no-print-directory --jobs $$(JOBS) run-c-$(1); \
	else $$(call missing,a $$(CC) that links $$(C_FLAGS_$(1)),$(1)); fi

-include $$(patsubst %,%.d,$$(programs_$(1))) $$(objects_$(1):.o=.d)
endef

# Says that something is left out because $(1) is not installed; in CI that is a failure.
missing = echo "SKIP  $(2): this machine lacks $(1)"; [ "$${CI:-}" != true ]

$(foreach name,plain asan tsan,$(eval $(call flavour,$(name))))
.SECONDARY:
