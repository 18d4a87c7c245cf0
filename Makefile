# make help lists the targets.
#
#   PYTHON=python3.12      the Python that .venv is made with
#   TORCH_INDEX_URL=URL    package index for torch and torchvision, for a build without CUDA
#   ARGS="..."             further arguments for pytest, or for the quickstart's run

VENV := .venv/bin
export PYTHON TORCH_INDEX_URL

.PHONY: help setup quickstart test lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with the package and all that it needs
	@sh scripts/setup.sh

quickstart: setup ## train, prune, export and time a small network on handwritten digits
	$(VENV)/prune2deploy run recipes/quickstart.yaml $(ARGS)

# Two workers with one thread each: more threads than cores make the tests several times slower.
test: export OMP_NUM_THREADS = 1
test: export MKL_NUM_THREADS = 1
test: setup ## run the tests
	$(VENV)/python -m pytest -n 2 $(ARGS)

lint: setup ## check format, lint and types
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy

format: setup ## put the format right, and what else ruff can mend
	$(VENV)/ruff format .
	$(VENV)/ruff check --fix .

clean: ## remove .venv and all caches; runs/ is kept
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
