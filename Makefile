# Every target sets up .venv on a fresh machine and reinstalls only when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
FLOORS := kernels export engine bench
PYTEST := -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-lower-bounds faults check docs format clean

demo: $(STAMP)
	$(BIN)/gfo-demo --out runs/demo

test: $(STAMP)
	$(BIN)/python $(PYTEST)

# Thousands of kills and damaged files; the suite tries a few. About half an hour.
faults: $(STAMP)
	rm -rf build/faults
	GFO_FAULTS=long $(BIN)/python -m pytest -q -n auto --dist load tests/faults
	$(BIN)/python tests/faults/table.py

# The oldest versions that pyproject.toml allows, in an environment of their own: some minutes and a few GB.
test-lower-bounds: $(STAMP)
	mkdir -p build
	$(BIN)/python tests/lower_bounds.py > build/lower-bounds.txt
	$(PYTHON) -m venv build/lower-bounds
	build/lower-bounds/bin/python -m pip install --quiet -c build/lower-bounds.txt -e '.[test]'
	build/lower-bounds/bin/python $(PYTEST)

check: $(STAMP) $(FLOORS:%=.typing/gfo/%)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(DOCS_STAMP)
	$(BIN)/sphinx-build -W --keep-going -n -q -b html docs build/docs
	@echo "build/docs/index.html"

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .typing .pytest_cache .ruff_cache .hypothesis build dist *.egg-info runs/demo

$(STAMP): pyproject.toml
	@echo "installing into $(VENV): some minutes and a few GB on a fresh machine"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

# A type checker does not follow the mapping of folders to gfo.*: these links show it the same tree.
.typing/gfo/%:
	mkdir -p $(@D)
	ln -sfn ../../$* $@
