# Everything runs in a virtual environment of its own, made on first use and brought up to date when sources change.
#   make PYTHON=python3.12 TORCH=torch      another Python, another torch (any pip requirement)
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
CMAKE_ARGS ?=
PYTEST_ARGS ?= -n 2
BENCH_ARGS ?= --readme
TRAIN_ARGS ?=
RESULTS_ARGS ?=

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
export PATH := $(BIN):$(PATH)

WITH_TORCH := $(VENV)/.with-$(subst /,_,$(TORCH))
# Another wish for the CUDA kernels compiles again, as another torch does.
CUDA_WISH := $(shell echo '$(TORCH_CUDA_ARCH_LIST) $(STC_CUDA_FORCE_CUDA) $(STC_CUDA_FORCE_CPU)' | tr -c 'a-zA-Z0-9.+\n' _)
WITH_CUDA := $(VENV)/.cuda-$(CUDA_WISH)
PACKAGE := setup.py build_cuda.py pyproject.toml stc_cuda/_version.py $(shell find csrc -type f)
CPP = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo train results test lint ctest emulate bench bench-compare bench-baseline format clean

help:
	@echo 'make demo    train a small video predictor on the CPU and draw what it predicts (demo_out/)'
	@echo 'make train   train a small predictor on digits by the command stc-cuda (runs/digits); TRAIN_ARGS are its options'
	@echo 'make results rewrite docs/results.md; RESULTS_ARGS="--json build/mine.json" trains all eight neurons anew'
	@echo 'make test    lint, C++ tests, Python tests'
	@echo 'make lint    ruff, mypy, clang-format'
	@echo 'make emulate run the CUDA kernels on the CPU, no GPU needed: a part of make test'
	@echo 'make bench   time the kernels beside their rivals, and rewrite the tables (ten minutes)'
	@echo 'make bench-compare   name what got slower by a tenth since make bench-baseline'
	@echo 'make format  apply ruff and clang-format'
	@echo 'make clean   remove what was built, except the virtual environment'

demo: $(VENV)/.for-demo
	@GOMP_SPINCOUNT=20000 $(BIN)/python -m stc_cuda.demo # threads that wait leave the cores to others soon

train: $(VENV)/.for-train
	@GOMP_SPINCOUNT=20000 $(BIN)/stc-cuda train digits $(TRAIN_ARGS)

results: $(VENV)/.for-train
	@GOMP_SPINCOUNT=20000 $(BIN)/python -m bench.learning --page $(RESULTS_ARGS)

bench: $(VENV)/.for-demo
	@mkdir -p build/bench
	@$(BIN)/python -m bench --json build/bench/bench.json --csv build/bench/bench.csv --plots build/bench $(BENCH_ARGS)

bench-compare: $(VENV)/.for-test
	@$(BIN)/python -m pytest bench/test_speed.py --benchmark-storage=bench/baseline --benchmark-compare --benchmark-compare-fail=median:10%

bench-baseline: $(VENV)/.for-test
	@$(BIN)/python -m pytest bench/test_speed.py --benchmark-storage=bench/baseline --benchmark-save=baseline

test: lint ctest
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.for-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run -Werror $(CPP)

ctest: $(VENV)/.for-test
	@$(BIN)/cmake -S . -B build/cmake -G Ninja -DPython3_EXECUTABLE=$(BIN)/python $(CMAKE_ARGS) > /dev/null
	@$(BIN)/cmake --build build/cmake -- --quiet
	@$(BIN)/ctest --test-dir build/cmake --output-on-failure

emulate: $(VENV)/.for-test
	@cd tests && $(BIN)/python -c 'from cuda_emulation import backend; print(backend.load().mode, "mode built")'
	@$(BIN)/python -m pytest -m emulated $(PYTEST_ARGS)
	@cd tests && $(BIN)/python -m cuda_emulation.audit

format: $(VENV)/.for-test
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf build dist *.egg-info stc_cuda/*.so demo_out .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f $(VENV)/.for-*

$(WITH_TORCH):
	@echo 'Making $(VENV) with $(TORCH)'
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "$(PYTHON) is older than Python 3.10; type make PYTHON=...")'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install '$(TORCH)' 'setuptools>=77' ninja
	@rm -f $(VENV)/.with-*
	@touch '$@'

$(WITH_CUDA): $(WITH_TORCH)
	@rm -f $(VENV)/.cuda-*
	@touch '$@'

$(VENV)/.for-demo: $(WITH_CUDA) $(PACKAGE)
	@echo 'Compiling stc_cuda into $(VENV)'
	@$(PIP) install --no-build-isolation -e '.[demo]'
	@touch $@

$(VENV)/.for-train: $(WITH_CUDA) $(PACKAGE)
	@echo 'Compiling stc_cuda into $(VENV), with what training needs'
	@$(PIP) install --no-build-isolation -e '.[train]'
	@touch $(VENV)/.for-demo $@

$(VENV)/.for-test: $(WITH_CUDA) $(PACKAGE)
	@echo 'Compiling stc_cuda into $(VENV), with the tools for its tests'
	@$(PIP) install --no-build-isolation -e '.[demo,test,dev]'
	@$(PIP) install --no-deps spikingjelly==2.0.0 lpips==0.1.4 # their dependencies would replace torch
	@touch $(VENV)/.for-demo $(VENV)/.for-train $@
