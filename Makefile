# fastmesh: one command per need, the same here and in CI. `make demo` and `make test` are complete: on a fresh
# Debian 12 with Python 3.11, pip and root they set up all they need, and do it once.
#
#   make demo [SECONDS=20]   a small mesh on this machine, with a live table
#   make test [ARGS=...]     the test suite (ARGS: for pytest)
#   make build               .venv/bin/fastmesh; FASTMESH_BUILD=debug|asan|trace: build/MODE/lib
#   make debug | asan        the suite on the build with assertions | with the sanitizers too
#   make bench [ARGS=...]    the measurements against nginx, HAProxy, nghttpx and Envoy
#   make check               format, lint, types, floors, Cython's hints
#   make fuzz [SECONDS=600] [TARGET=all]  coverage-guided fuzzing: http1, http2, translation between them, detect (what
#                            the first bytes tell), transparent (where connections go that were taken over)
#   make clean

SHELL := /bin/bash
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
FASTMESH_BUILD ?= release
BIN := .venv/bin
# Images for containers like to set this. Every start of Python would compile all of fastmesh anew.
unexport PYTHONDONTWRITEBYTECODE
SOURCES := setup.py $(shell find fastmesh/_core.pyx fastmesh/core tests/probe -name '*.p[xy][dx]')
# Tests wait more than they compute: one process more than there are cores, but more than four help no more. Each begins
# with a part of its own, so that what a module's tests share is made once, and takes from others what they have left.
PYTEST := $(BIN)/pytest -n $(shell echo $$(($$(nproc) + 1))) --maxprocesses 4 --dist worksteal $(ARGS)

# Tests of Python alone, or of what other tests of compiled code go through: other builds find nothing more in them.
PURE := agent bench certs dns docs \
	$(addprefix e2e/test_,command_line.py demo.py explain.py) intercept kubernetes launch \
	$(addprefix test_,floors.py grpc_kit.py http2_kit.py packaging.py)

.PHONY: demo test build debug asan bench check fuzz clean

demo: build/release/done
	$(BIN)/fastmesh demo --seconds $(or $(SECONDS),20)

test: build/release/done
	$(PYTEST)

build: build/$(FASTMESH_BUILD)/done

debug asan: %: build/%/done
	scripts/in-build $@ $(PYTEST) $(PURE:%=--ignore=tests/%)

bench: build/release/done
	$(BIN)/python -m bench --install $(ARGS)

check: .venv/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q --noconftest tests/test_floors.py
	scripts/check-cython

fuzz: .venv/done
	scripts/debian-packages clang=clang libclang-rt-14-dev
	tests/fuzz/run $(or $(TARGET),all) $(or $(SECONDS),600)

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info fastmesh/*.so bench/{floor,sockmap,stream_serve,stream_load}
	rm -rf tests/kit/grpc-js/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/done: pyproject.toml scripts/setup scripts/debian-packages tests/kit/grpc-js/package-lock.json
	scripts/setup $(PYTHON)
	@touch $@

build/%/done: .venv/done scripts/build $(SOURCES)
	scripts/build $*
	@touch $@
