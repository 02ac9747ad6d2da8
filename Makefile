# Two commands are all the set-up there is: `make demo` and `make test`. Each makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= report

.PHONY: install demo test check bench docs clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hooked_rnn needs Python >= 3.11, this is %d.%d; try make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/hooked-rnn report --out $(OUT)

test: install
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --quiet --strict --site-dir $(VENV)/site

bench: install
	$(BIN)/python -m benchmarks

docs: install
	$(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) $(OUT) dist
