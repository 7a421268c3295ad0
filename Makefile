# `make` alone lists the targets. Everything runs in .venv, which the first target that needs it makes.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Nothing here reports home.
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install private repro test lint types unit smoke faults bench docs ui preview timing verify preset upgrade clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@git rev-parse --git-dir > /dev/null 2>&1 || { echo "DVC needs a git repository, and this folder is none (a ZIP has no .git): clone it, or git init && git add -A && git commit -m Start" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fmcore needs Python 3.11 or newer; say which: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some gigabytes, several minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(MAKE) --no-print-directory private
	@touch $@

# DVC keeps pickles apart from the checkout, by default in a folder that every user of the machine can write to. Its
# pages ask the web for their chart library, unless they bring it.
private:
	@case "$$XDG_CACHE_HOME" in /*) caches=$$XDG_CACHE_HOME/fmcore;; *) caches=$$HOME/.cache/fmcore;; esac; \
	case "$$caches:$$HOME" in /*:/*) ;; *) echo "HOME: expected the path of your folder, got '$$HOME'" >&2; exit 2;; esac; \
	mkdir -p "$$caches" && chmod 700 "$$caches" && $(BIN)/dvc config --local core.site_cache_dir "$$caches/dvc"
	@test -s .dvc/charts.html || $(BIN)/python -m flows.local.charts || true

install: $(READY) ## make .venv with the tested versions

repro: $(READY) ## train, reflow, distill, evaluate and report what params.yaml says (dvc repro)
	@test -z "$$(tail -c 1 dvc.lock 2>/dev/null)" || python -m flows.local.lockfile || true
	@python -m flows.params.graph
	@since=$$(date +%s); dvc repro || { python -m flows.local.lockfile && dvc repro; } && \
		echo && python -m flows.launch.timing --since $$since && \
		echo "report: reports/index.html (python -m flows.report: the page with what made it, in one file)"

test: lint types unit ## lint, types, all tests

lint: $(READY) ## ruff
	ruff check .
	ruff format --check .

types: $(READY) ## mypy
	mypy

unit: $(READY) ## the tests alone, on all cores
	pytest -n auto --dist loadfile --no-loadscope-reorder
	@if test "$$(python -c 'import torch; print(torch.backends.cpu.get_cpu_capability())')" = AVX2; then \
		echo "this processor has AVX2 only: what is run again as on such a one has run already"; \
	else set -x; ATEN_CPU_CAPABILITY=avx2 pytest -n auto -q -m "(numerics or precisions) and not slow" \
		$$(grep -rlE --include="test_*.py" "mark\.(numerics|precisions)" tests); fi

smoke: $(READY) ## tests of the whole graph on a tiny preset: kills, edits, mistakes in params.yaml
	pytest tests/test_pipeline.py tests/test_mistakes.py

faults: $(READY) ## 200 kills, bits flipped in the files of six stages, 11,000 odd parameter files (an hour or more; SEED=)
	FMCORE_FAULTS=10 FMCORE_FAULTS_SEED=$(or $(SEED),0) pytest tests/faults

bench: $(READY) ## speed of training, sampling and scores against other tools (long; on an idle machine)
	results=benchmarks/results/$$(python benchmarks/machine.py) && \
	python benchmarks/training.py --threads 2 --out $$results/training-2.md && \
	python benchmarks/training.py --threads 1 --out $$results/training-1.md && \
	python benchmarks/quality.py --out $$results/quality.md && \
	python benchmarks/costs.py --threads 2 --out $$results/costs-2.md && \
	python benchmarks/scores.py --out $$results/scores.md && \
	python benchmarks/processes.py --out $$results/processes.md

docs: $(READY) ## the documentation as a site, with a reference of fmcore: docs/_build/index.html
	sphinx-build -q -W --keep-going -b html docs docs/_build
	@echo "site: docs/_build/index.html"

ui: $(READY) ## Prefect's and MLflow's pages and a worker, for you alone (PREFECT_PORT=, MLFLOW_PORT=; LOGIN=off: for all here)
	python -m flows.pages $(if $(filter off,$(LOGIN)),--no-login) $(if $(PREFECT_PORT),--prefect-port '$(PREFECT_PORT)') \
		$(if $(MLFLOW_PORT),--mlflow-port '$(MLFLOW_PORT)')

preview: $(READY) ## what a run would cost: evaluations, time at a rate measured now (or TFLOPS=), disk, what would run
	@python -m flows.preview $(if $(TFLOPS),--tflops '$(TFLOPS)')

timing: $(READY) ## where the last run's time went
	@python -m flows.launch.timing

verify: $(READY) ## read every out and DVC's cache again: what is damaged is named
	@python -m flows.disk.verify

preset: $(READY) ## params.yaml := the defaults overlaid with presets/NAME.yaml
	@python -m flows.params.preset $(NAME)

upgrade: $(READY) ## params.yaml and presets of an older version, brought up to date
	@python -m flows.params.upgrade

clean: ## remove what the pipeline made; DVC's cache, MLflow's and Prefect's records stay
	rm -rf dataset features models couplings curves scores reports *.checked.json data.seen.json data.beside.json dvc_plots
	find work -mindepth 1 -maxdepth 1 ! -name journal ! -name 'prefect*' -exec rm -rf {} + 2>/dev/null || true
