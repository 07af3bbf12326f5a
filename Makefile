# Two commands: `make quickstart` and `make test`. Each makes .venv, installs what it needs and does its job.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test check fast clean help

help:
	@echo "make quickstart   install, then grow a model on the embedded corpus (about ten minutes on 2 cores)"
	@echo "make test         install with the development tools, then run all tests"
	@echo "make check        lint, format and types"

# A stamp records what was installed, so a second call installs nothing; a changed pyproject.toml installs again.
.venv/.base: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/.dev: .venv/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

quickstart: .venv/.base
	$(BIN)/mengya run recipes/quickstart.yaml

# In the order of the files: those of tests/e2e take minutes each, and would otherwise come last, one worker waiting.
test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
