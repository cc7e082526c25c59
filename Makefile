# Everything a clone needs: each target first installs what is missing into .venv (see install.sh).

PYTHON ?= python3
BIN := .venv/bin
# Albumentations would otherwise ask the network for a newer release on every import.
export NO_ALBUMENTATIONS_UPDATE := 1

# Named by all that decides what is installed and where, so that an up-to-date installation costs nothing.
INSTALLED := .venv/installed-$(shell (cat setup.py install.sh; pwd) | sha256sum | cut -c1-16)

.DEFAULT_GOAL := help
.PHONY: help install ffcv demo test lint bench doctor clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## create .venv and install what is missing

$(INSTALLED):
	@PYTHON="$(PYTHON)" ./install.sh
	@rm -f .venv/installed-* && touch $@

ffcv: $(INSTALLED) ## try again to build the ffcv package, once its system packages are there
	@./install.sh ffcv

demo: $(INSTALLED) ## train on the embedded images and write a report: the main job, end to end
	@$(BIN)/python engine/train.py $(ARGS)

test: $(INSTALLED) ## run the tests
	@$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED) ## check style and types
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

bench: $(INSTALLED) ## compare the loaders' throughput on this machine
	@$(BIN)/python benchmarks/throughput.py $(ARGS)

doctor: $(INSTALLED) ## what is installed, and what to type for what is not
	@$(BIN)/python -m penstock doctor

clean: ## remove .venv and everything that was built (not the cache of data)
	rm -rf .venv build dist .package/*.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
