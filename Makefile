# Set-up and the commands of the README. `make demo` and `make test` do everything from a bare checkout.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(abspath $(BIN)):$(PATH)
# Compiled modules are kept: pip leaves compiling to the first import, which every process would repeat otherwise.
unexport PYTHONDONTWRITEBYTECODE

# Two processes, each a file at a time, in the order of tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help env demo demo-arithmetic report dag docs schema check test test-wheel test-slurm test-faults
.PHONY: lint lint-style lint-types lint-workflow format ui lock clean

help:            ## Say what there is
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  +##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 16

env: $(READY)    ## Create the virtual environment and install what is pinned in requirements.lock

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("stopwise needs Python 3.11 or newer, found " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python tools/install.py $(BIN)/python requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $(READY)

demo: env        ## Run config.yaml and config/demo-encoder.yaml: prediction, training, stops, figures, results page
	@echo "1 of 2: a language model on two tasks (config.yaml). The first run fetches it and the data, 130 MB."
	snakemake --cores all --logger stopwise
	@echo "2 of 2: a small encoder with a new head, several sizes and seeds (config/demo-encoder.yaml; 84 MB)."
	snakemake --cores all --logger stopwise --configfile config/demo-encoder.yaml
	@cat results/demo/summary.md results/demo-encoder/summary.md
	@echo
	@echo "Open first: results/demo/index.html and results/demo-encoder/index.html (no network needed)"
	@echo "figures:    results/demo*/figures/*.svg and *.png    tables: results/demo*/**/*.parquet"
	@echo "more:       make report (run times, provenance), make ui (record of all runs), make demo-arithmetic"

demo-arithmetic: env ## Run config/demo-arithmetic.yaml: task vectors added and negated, predicted beforehand
	snakemake --cores all --logger stopwise --configfile config/demo-arithmetic.yaml
	@cat results/demo-arithmetic/summary.md
	@echo
	@echo "Open first: results/demo-arithmetic/index.html    figures: results/demo-arithmetic/figures"

report: env      ## Write Snakemake's HTML report of the last run of config.yaml: figures, run times, provenance
	snakemake --cores 1 --report results/demo/report.html

dag: env         ## Draw the picture of the workflow, docs/figures/workflow.svg, anew
	snakemake --rulegraph dot --configfile config/test.yaml | python tools/rule_graph.py docs/figures/workflow

docs: env        ## Build the documentation into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

schema: env      ## Write the configuration's JSON schema and its pages anew
	python -m stopwise.pipeline.config_reference docs/reference/configuration.md config/README.md

check: lint      ## Lint, and the tests of the library that take two seconds at most: under five minutes
	$(PYTEST) -m "not pipeline and not slow" tests/unit

test: env        ## Run the whole test suite, two files at a time (but what the next three run)
	$(PYTEST) -m "not wheel and not slurm and not faults"

test-wheel: env  ## Build the wheel, install it into an empty environment and use it there
	python -m pytest -m wheel tests/wheel

test-slurm: env  ## Run the pipeline on a real one-node Slurm (root; Debian's slurm-wlm and munge)
	python -m pytest -m slurm tests/cluster

test-faults: env ## Kill and damage a running pipeline many times (long)
	STOPWISE_FAULTS=$${STOPWISE_FAULTS:-40} $(PYTEST) --dist worksteal -m faults tests/faults

lint: env        ## Check style, types and the workflow
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint-types lint-workflow lint-style

lint-style: env
	ruff check .
	ruff format --check .
	lint-imports --no-cache

lint-types: env
	mypy

lint-workflow: env
	snakefmt --check Snakefile workflow/rules
	snakemake --lint

format: env      ## Rewrite the code in the project's style
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow/rules

ui: env          ## Open the MLflow record on 127.0.0.1
	MLFLOW_DISABLE_TELEMETRY=true mlflow ui --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///results/mlflow/mlflow.db

lock: env        ## Write the installed versions to requirements.lock
	( sed -n '/^#/p' requirements.lock; python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' ) > .lock.tmp
	mv .lock.tmp requirements.lock

clean:           ## Remove everything that can be made again (results included)
	rm -rf $(VENV) build results .snakemake .pytest_cache .ruff_cache .mypy_cache .hypothesis
