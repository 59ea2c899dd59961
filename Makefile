PYTHON ?= python3
# The torch to install, for example TORCH="torch==2.13.0".
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
# A process for every core; the tests of a file share what they set up.
IN_PARALLEL := --numprocesses auto --dist loadfile

.PHONY: demo test test-slow quality

demo: $(VENV)/.demo
	$(BIN)/python demo/segment_photo.py

test: $(VENV)/.test
	$(BIN)/python -m pytest $(IN_PARALLEL)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest $(IN_PARALLEL) -m slow

quality: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.%: setup.cfg pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
