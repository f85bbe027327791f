# The verbs. `make serve` and `make test` need nothing but Python 3.11 or later, gcc and g++: all else goes into .venv.
#
#   make serve ARGS="--port 9000"      ARGS: more arguments for the verb's command (serve, test, fuzz, fault, bench)
#   make serve PYTHON=python3.12       PYTHON: the interpreter that .venv is made with
#   make chaos MINUTES=1 PROCESSES=2   how long, and how many serving processes (one server for each number)
#   FASTINFER_DEBUG=1 make serve       the switches of setup.py; changing one builds everything again

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test test-long clients test-clients test-models lint format debug sanitize sanitized-test coverage covered-test coverage-python fuzz fuzz-guided guided-run fault fault-quick chaos bench bench-quick bench-peers bench-micro models clean

PYTHON ?= $(firstword $(foreach each,python3.11 python3 python3.12 python3.13,$(shell \
	$(each) -c 'import sys; sys.version_info >= (3, 11) and print("$(each)")' 2>/dev/null)))
# Tests wait a good deal for servers, so there is one worker more than cores. A worker runs whole files: their tests share
# servers. WORKERS=0: one test after the other, in this process, for a debugger.
WORKERS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
SPREAD = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
MINUTES ?= 10
PROCESSES ?= 1 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
DONE := .venv/done
FLAVOUR := $(strip $(foreach each,DEBUG SANITIZE COVERAGE GUIDED,$(if $(filter-out 0,$(FASTINFER_$(each))),$(each))))
BUILT := $(DONE)/built$(FLAVOUR:%=-%)
SOURCES := setup.py $(shell find ext -name "*.pyx" -o -name "*.pxd" -o -name "*.h")
UNBUILD := rm -rf build $(DONE)/built*; find fastinfer -name '*.so' -delete; find ext -name '*.cpp' -delete

help:  ## show the verbs
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

serve: $(BUILT)  ## serve the bundled models on 127.0.0.1:8000
	@exec $(BIN)/fastinfer serve --model-repository model-repository $(ARGS)

test: $(BUILT) $(DONE)/dev  ## run the tests, but the long ones
	@$(BIN)/python -m pytest $(SPREAD) -m "not long and not models" $(ARGS)

test-long: $(BUILT) $(DONE)/dev  ## run the long ones: bad disks, releases, hanging loads, proofs over many graphs, instructions
	@$(BIN)/python -m pytest $(SPREAD) -m long $(ARGS)

clients: $(BUILT) $(DONE)/dev  ## install stock clients (940 MB)
	@$(BIN)/python -m tests.clients

test-clients: clients  ## run the tests that drive them
	@REQUIRE_TEST_CLIENTS=1 $(BIN)/python -m pytest tests/clients $(ARGS)

test-models: $(BUILT) $(DONE)/dev  ## run all lines of docs/models.md: frameworks are installed first (7 GB); ARGS="-k PyTorch" runs one
	@$(BIN)/python -m pytest tests/models -m models $(ARGS)

lint: $(BUILT) $(DONE)/dev  ## check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint ext
	@git ls-files '*.h' '*.cpp' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(DONE)/dev  ## format Python and C++
	@$(BIN)/ruff check --fix --exit-zero
	@$(BIN)/ruff format
	@git ls-files '*.h' '*.cpp' | xargs $(BIN)/clang-format -i

debug:  ## run unit, wire and contract tests in a build that checks invariants and indices
	@FASTINFER_DEBUG=1 $(MAKE) --no-print-directory test ARGS="tests/unit tests/wire tests/contract $(ARGS)"

sanitize:  ## run the unit tests under the address and undefined-behaviour sanitizers
	@FASTINFER_SANITIZE=1 $(MAKE) --no-print-directory sanitized-test

# A sanitizer keeps freed memory for a while, so the tests that weigh the process are left out.
sanitized-test: $(BUILT) $(DONE)/dev
	@LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" PYTHONMALLOC=malloc \
		ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest tests/unit --timeout=0 -k "not test_memory_of" $(ARGS)

coverage:  ## which lines of ext/ and fastinfer/ the tests run, in a build that counts; fails below 95 % of either
	@FASTINFER_COVERAGE=1 $(MAKE) --no-print-directory covered-test

# The counts lie beside the objects, and pip throws those away that it made for the first installation: hence the build.
covered-test: $(BUILT) $(DONE)/dev
	@$(BIN)/python setup.py -q build_ext --inplace
	@find build -name '*.gcda' -delete
	@$(MAKE) --no-print-directory coverage-python; python=$$?; $(BIN)/gcovr && exit $$python

# Instructions would be those of the tracing too. What a process has counted that is killed is lost.
coverage-python: $(BUILT) $(DONE)/dev  ## the same of fastinfer/ alone, in the build that there is: little longer than test
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(BIN)/python -m coverage run -m pytest --timeout=600 --ignore=tests/test_instructions.py -m "not models" $(ARGS)
	@$(BIN)/python -m coverage combine -q
	@$(BIN)/python -m coverage report

fuzz: $(BUILT) $(DONE)/dev  ## run the property tests with many more examples; compare numbers and bodies in bulk
	@$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=fuzz --timeout=0 $(ARGS)
	@$(BIN)/python -m tests.fuzz.numbers
	@$(BIN)/python -m tests.fuzz.bodies
	@$(BIN)/python -m tests.fuzz.pages

fuzz-guided:  ## a minute each: feed decoder, binary reader and HTTP layer inputs that walk new paths, in a build of its own
	@FASTINFER_GUIDED=1 $(MAKE) --no-print-directory guided-run

guided-run: $(BUILT) $(DONE)/dev build/coverage.so
	@LD_PRELOAD=build/coverage.so $(BIN)/python -m tests.fuzz.guided $(ARGS)

build/coverage.so: tests/fuzz/coverage.cpp
	@mkdir -p build && $(CXX) -O2 -shared -fPIC $< -o $@

fault: $(BUILT) $(DONE)/dev  ## half an hour: try what may happen to a server, show a figure for each (bench/results/)
	@$(BIN)/python -m tests.fault.run $(ARGS)

fault-quick: $(BUILT) $(DONE)/dev  ## the same with small counts, in a few minutes; ARGS="SIGTERM idle" tries these only
	@$(BIN)/python -m tests.fault.run --quick $(ARGS)

chaos: $(BUILT) $(DONE)/dev  ## everything at once for MINUTES=10 and each of PROCESSES="1 2", beside a client that checks each answer
	@$(BIN)/python -m tests.fault.chaos --minutes $(MINUTES) --processes $(PROCESSES) $(ARGS)

bench: $(BUILT) $(DONE)/dev  ## nine minutes: measure against the servers that are installed, say which goals are met (bench/results/)
	@$(BIN)/python bench/load/run.py $(ARGS)

bench-quick: $(BUILT) $(DONE)/dev  ## the same in a minute: one short round, without growth
	@$(BIN)/python bench/load/run.py --quick $(ARGS)

bench-peers: $(DONE)/dependencies  ## install the servers to compare with: FastAPI, MLServer, Triton (1.1 GB)
	@$(BIN)/python -m bench.peers install $(ARGS)

bench-micro: $(BUILT) $(DONE)/dev  ## time decoder, encoder and a request without a socket; count instructions
	@$(BIN)/python bench/micro/codec.py
	@$(BIN)/python bench/micro/request.py
	@$(BIN)/python bench/micro/instructions.py

models: $(DONE)/dev  ## make the bundled models again
	@$(BIN)/python model-repository/make_models.py

clean:  ## remove what was built
	@$(UNBUILD)
	@rm -rf dist *.egg-info $(DONE)/installed

# --- The steps. Each leaves a stamp, so the second time is instant. --------------------------------------------------

# The requirements of pyproject.toml: an expression over p, its contents.
requirements = $(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	print(*($(1)), sep="\n")' > $@.txt && $(PIP) install -r $@.txt

$(DONE)/venv:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/it"; exit 1; }
	@echo "==> making .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --upgrade pip
	@mkdir -p $(DONE) && touch $@

$(DONE)/dependencies: pyproject.toml | $(DONE)/venv
	@echo "==> installing the dependencies"
	@$(call requirements,p["build-system"]["requires"] + p["project"]["dependencies"])
	@touch $@

$(BUILT): $(SOURCES) $(DONE)/dependencies
	@echo "==> compiling the extensions (a minute or two)$(if $(FLAVOUR), with $(FLAVOUR))"
	@test -e $@ || { $(UNBUILD); }
	@if test $(DONE)/installed -nt $(DONE)/dependencies; then $(BIN)/python setup.py -q build_ext --inplace; \
		else $(PIP) install --no-deps --no-build-isolation -e . && touch $(DONE)/installed; fi
	@touch $@

$(DONE)/dev: pyproject.toml | $(DONE)/dependencies
	@echo "==> installing what tests and benchmarks need"
	@$(call requirements,r for e in p["project"]["optional-dependencies"].values() for r in e if r[:9] != "fastinfer")
	@touch $@
