# The commands of the README; each sets up what it needs in .venv. PYTHON, VENV, TORCH and ARGS may be overridden.
PYTHON ?= python3
VENV ?= .venv
# the versions that the tests were run with; any torch >= 2.11 will do
TORCH ?= torch==2.14.0
TORCHVISION ?= torchvision==0.29.0
ARGS ?=

BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
# one thread per test process, two processes: the timings of the tests were taken so
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

.PHONY: demo test test-all lint build format clean

demo: $(VENV)/demo.done
	$(BIN)/python -m experiments.demo $(ARGS)

test: $(VENV)/dev.done lint
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/dev.done
	$(PYTEST) -m slow $(ARGS)

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs -r $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/dev.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs -r $(BIN)/clang-format -i

# builds the compiled libraries in place and fails, rather than going without, where one does not compile
build: $(VENV)/torch.done
	RDK_BUILD=require $(BIN)/python setup.py build_ext --inplace

$(VENV)/torch.done:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q "$(TORCH)" numpy "setuptools>=77" wheel ninja
	touch $@

$(VENV)/demo.done: $(VENV)/torch.done $(SOURCES)
	$(BIN)/pip install -q --no-build-isolation -e ".[demo]"
	touch $@

$(VENV)/dev.done: $(VENV)/torch.done $(SOURCES)
	$(BIN)/pip install -q "$(TORCHVISION)"
	$(BIN)/pip install -q --no-build-isolation -e ".[dev,experiments,benchmarks,demo]"
	touch $@

clean:
	rm -rf $(VENV) build rdk/*.so rdk/_build_info.json *.egg-info
