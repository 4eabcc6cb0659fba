# Every target works on a bare clone: what is missing in .venv is installed first.
PYTHON ?=
PORT ?= 8000
PY = .venv/bin/python
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest
LOSSES = soft_targets features relations self_distillation detection language advanced
SYNC = $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# A sentence of the text that is not true of its numbers stops a notebook; a learner's only says so.
export KDCOURSE_CLAIMS ?= stop
PAGES ?=
SCHEDULER ?=
FOUND ?=

.PHONY: help quick book test unit-tests notebook-tests colab site-tests lint studies verify bench \
	notebooks teachers ledger serve dist clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

quick: .venv/.installed-dev ## While you work: style, types, drift and the tests of the losses, in a minute
	@$(MAKE) --no-print-directory lint
	$(PYTEST) -n 2 -q $(LOSSES:%=tests/test_%.py) $(LOSSES:%=kdcourse/%.py)

book: .venv/.installed-book ## Build the book: runs every notebook, any warning is an error
	$(PY) book/assets/fetch.py
	@$(PY) tests/programs.py bubblewrap # for the page on grading, where it can be had
	@rm -f _build/html/index.html # leads to the first page; written anew, in case that changed
	@# After a failure the pages read so far are forgotten: their warnings must come again.
	.venv/bin/jupyter-book build . -W -n --keep-going || { rm -rf _build/.doctrees; exit 1; }
	@echo "The book is built. Open in a browser:"
	@echo "$(CURDIR)/_build/html/index.html"

test: .venv/.installed-dev ## Check everything: style, types, tests, notebooks, book, pages
	$(PY) tests/programs.py
	@$(MAKE) --no-print-directory lint
	@echo "The unit tests and the book, side by side; what each prints comes when it is done."
	@$(MAKE) --no-print-directory -j 2 $(SYNC) unit-tests book
	@$(MAKE) --no-print-directory notebook-tests site-tests

unit-tests: .venv/.installed-dev ## Only the tests of the package and the grader, and the doctests
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/test_site.py

notebook-tests: .venv/.installed-dev ## Only the notebooks, each alone, at its small values, in a host shaped like Colab
	OMP_NUM_THREADS=1 $(PY) tests/colab.py

colab: .venv/.installed-dev ## The same in a new environment, which each notebook's first cell fills from the network
	$(PY) tests/colab.py --whole

site-tests: .venv/.installed-dev ## Only the built pages, in a headless browser
	$(PYTEST) -n 3 --dist worksteal tests/test_site.py

lint: .venv/.installed-dev ## Check style and types, and that the notebooks match their sources
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m kdcourse.notebooks --check

studies: .venv/.installed-dev ## Repeat all studies, hours; when stopped, it goes on (PAGES=..., SCHEDULER=... for Dask)
	OMP_NUM_THREADS=1 $(PY) tests/studies.py $(PAGES) $(SCHEDULER:%=--scheduler %)

ledger: book ## Write the ledger of claims anew, from the book and FOUND, what the long check found
	$(PY) tests/ledger.py $(FOUND)

verify: .venv/.installed-dev ## The long check for a release, hours: all studies and claims on three sets of seeds
	$(PY) tests/programs.py
	OMP_NUM_THREADS=1 $(PY) tests/verify.py $(PAGES:%=--pages %) $(SCHEDULER:%=--scheduler %)

bench: .venv/.installed-dev ## Time the losses and the training step
	$(PYTEST) tests/benchmarks --benchmark-only

notebooks: .venv/.installed-book ## Write the notebooks from book/sources
	$(PY) -m kdcourse.notebooks

teachers: .venv/.installed-book ## Train the teachers that ship with the package again
	$(PY) -m kdcourse.weights

serve: book ## Build the book and serve it at http://localhost:8000 (PORT=... for another port)
	$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

dist: .venv/.installed-dev book ## Write a release's files into dist: wheel, sdist, the site as a zip, checksums
	@rm -rf dist
	$(PY) .ci/dist.py

clean: ## Remove everything that was built; .venv stays
	rm -rf _build book/_static/vendor dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

.venv/.installed-%: pyproject.toml .ci/constraints.txt .ci/install
	@PYTHON="$(PYTHON)" sh .ci/install $*
