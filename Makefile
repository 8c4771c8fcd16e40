# One screen: make demo, make test, make lint, make bench, make docs. Each builds what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench docs native clean
demo: $(READY)
	$(BIN)/latewood demo

# Two test processes on two cores: one thread each, or they slow one another down. Files go to them
# in the order of tests/conftest.py.
test: export OMP_NUM_THREADS = 1
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo build/site/index.html

native: $(READY)
	$(BIN)/pip install -q --no-deps --no-build-isolation -c constraints.txt -e .

# The build tools come first, so that the native kernels compile against pinned versions.
$(READY): pyproject.toml constraints.txt CMakeLists.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt scikit-build-core hatch-fancy-pypi-readme nanobind cmake ninja
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

clean:
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache
