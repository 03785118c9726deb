# Everything a reader or an author does with the book. `make` alone lists the targets.
#   PYTHON=python3.12 make book        another Python, 3.11 or newer
#   make book TORCH_INDEX=https://download.pytorch.org/whl/cpu        a build of torch without CUDA

PYTHON ?= python3
TORCH_INDEX ?=
CHAPTER ?=
PORT ?= 8000

ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
VENV_PYTHON := $(BIN)/python
INSTALLED := .venv/installed
PYTEST := $(VENV_PYTHON) -m pytest tests --nbval --nbval-current-env book -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help book test test-thorough lab serve run student experiments benchmarks check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

book: $(INSTALLED) ## build the book into _build/html, with warnings as errors
	@# Sphinx does not repeat the warnings of a page that it has read: after a failure it must read all again.
	@$(BIN)/jupyter-book build . -W --keep-going -n || { rm -rf _build/.doctrees; exit 1; }
	@echo "The book is built. Open $(CURDIR)/_build/html/index.html in a browser, or run: make serve"

test: book ## run every test: library, notebooks, built pages
	$(PYTEST)

test-thorough: book ## the same with the full counts
	LIPBOOK_THOROUGH=1 $(PYTEST)

lab: $(INSTALLED) ## open JupyterLab on the book
	$(VENV_PYTHON) -m jupyterlab book

serve: book ## serve the built book on localhost (PORT=8000)
	@echo "http://localhost:$(PORT)/ (stop with Ctrl-C)"
	@$(VENV_PYTHON) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

run: ## execute a chapter and normalise it: make run CHAPTER=book/bounds/spectral-norms.ipynb
	@test -n "$(CHAPTER)" || { echo "Which chapter? make run CHAPTER=book/bounds/spectral-norms.ipynb"; exit 2; }
	@$(MAKE) --no-print-directory $(INSTALLED)
	$(VENV_PYTHON) tools/notebook.py run "$(CHAPTER)"
	$(VENV_PYTHON) tools/reference.py

student: $(INSTALLED) ## copies of the chapters without the solutions, in _build/student
	$(VENV_PYTHON) tools/student.py

experiments: $(INSTALLED) ## rerun every script of experiments/
	$(VENV_PYTHON) tools/record.py --afresh $(sort $(wildcard experiments/*/*.py))

benchmarks: $(INSTALLED) ## rerun every script of benchmarks/
	$(VENV_PYTHON) tools/record.py --afresh $(sort $(wildcard benchmarks/*/*.py))

check: $(INSTALLED) ## check this installation, in plain words
	@$(VENV_PYTHON) -m lipbook

clean: ## remove the built book and the tests' caches (the virtual environment stays)
	rm -rf _build .pytest_cache .hypothesis

# Notebooks print the same text on every machine with one thread and a fixed hash seed.
test test-thorough lab run: export OMP_NUM_THREADS := 1
test test-thorough lab run: export PYTHONHASHSEED := 0

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "The book needs Python 3.11 or \
	newer, and $(PYTHON) is not, or is not there. Name another: make $(MAKECMDGOALS) PYTHON=python3.12"; \
	exit 1; }
	@echo "Installing into .venv: a few minutes the first time."
	@test -e $(BIN) || $(PYTHON) -m venv .venv
ifneq ($(TORCH_INDEX),)
	$(VENV_PYTHON) -m pip install --quiet --no-deps -c constraints.txt --index-url $(TORCH_INDEX) torch
endif
	$(VENV_PYTHON) -m pip install --quiet -c constraints.txt -e '.[book,test]'
	@touch $@
