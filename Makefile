# `make demo` and `make test` set up .venv by themselves.

VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

# The first Python that the engine has a build for.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test test-slow bench bench-hgq method-table search-jets hgq-front check-hgq2 check-import check-tracking lint docs plots clean

demo: $(VENV)/ready
	$(BIN)/pqc run jet_tagger --schedule cs-demo --out build/demo

test: $(VENV)/ready
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -m slow -n auto --dist loadfile

bench: $(VENV)/ready .venv-peers/ready
	$(BIN)/python tests/benchmarks/step_time.py --rounds 15

bench-hgq: $(VENV)/ready .venv-peers/ready .venv-hgq/ready
	$(BIN)/python tests/benchmarks/hgq_step_time.py

hgq-front: $(VENV)/ready .venv-hgq/ready
	$(BIN)/python tests/benchmarks/hgq_front.py

check-hgq2: $(VENV)/ready .venv-hgq/ready
	$(BIN)/python -m pytest tests/test_ebops_hgq2.py -m slow

check-tracking: $(VENV)/ready .venv-mlflow/ready
	$(BIN)/python -m pytest tests/test_tracking_server.py -m slow

check-import: $(VENV)/ready .venv-frameworks/ready
	$(BIN)/python -m pytest tests/test_import_frameworks.py -m slow

search-jets: $(VENV)/ready
	$(BIN)/python tests/benchmarks/search_jets.py

method-table: $(VENV)/ready
	$(BIN)/python tests/benchmarks/method_table.py --jobs 2

.venv-peers/ready:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 pquant-ml==0.1.0
	@touch $@

.venv-hgq/ready:
	$(PYTHON) -m venv .venv-hgq
	.venv-hgq/bin/python -m pip install --quiet --disable-pip-version-check hgq2==0.2.0 jax==0.10.2 keras==3.15.1 onnx
	@touch $@

# JAX's exporter needs a newer onnx than the training engine takes: the frameworks live apart.
.venv-frameworks/ready:
	$(PYTHON) -m venv .venv-frameworks
	.venv-frameworks/bin/python -m pip install --quiet --disable-pip-version-check \
		torch==2.13.0 keras==3.15.1 jax2onnx==0.17.1 onnxscript safetensors
	@touch $@

# MLflow's server, which the client of pqc's own environment does without.
.venv-mlflow/ready:
	$(PYTHON) -m venv .venv-mlflow
	.venv-mlflow/bin/python -m pip install --quiet --disable-pip-version-check 'mlflow>=3.1'
	@touch $@

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@# The checkout is flat; mypy needs the import package as it is installed.
	rm -rf build/typed && mkdir -p build/typed && cp -r pqc build/typed/ && cp -r passes models schedules build/typed/pqc/
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p pqc

docs: $(VENV)/ready
	$(BIN)/python docs/generate.py

plots: $(VENV)/ready
	$(BIN)/python docs/plot_masks.py

$(VENV)/ready: pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
		|| { echo "pqc needs Python 3.10, 3.11 or 3.12: its training engine has no build beyond."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	$(BIN)/pqc doctor --repair
	@touch $@

$(VENV)/dev: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/pqc doctor --repair
	@touch $@

clean:
	rm -rf build $(VENV)
