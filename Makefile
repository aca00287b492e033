# Everything a machine with Python 3.11-3.13 and make needs: `make demo`, `make test`.

PYTHON ?= python3
# Where torch comes from is found out, unless TORCH_INDEX names a package index.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet
# In as many processes as there are cores, each of one thread.
TESTS := $(RUN) -m pytest --numprocesses auto --dist worksteal
QUESTIONS := 8
NEW_TOKENS := 96

.PHONY: setup demo test test-fast lint types bench gpu clean

setup: $(VENV)/.installed

$(VENV)/.installed: setup.py requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) tools/install_torch.py "$(TORCH)"$(if $(TORCH_INDEX), --index-url "$(TORCH_INDEX)")
	$(PIP) install --editable ".[dev,train,app,serve]"
	touch $@

demo: setup
	rm -rf mt_bench/demo
	$(RUN) -m eagle.evaluation.sweep --folder_id demo --temperature 1.0 0.0 --method baseline eagle3 hsd \
	  --question-end $(QUESTIONS) --max-new-token $(NEW_TOKENS) --html mt_bench/demo/report.html

test: setup lint types
	$(TESTS)

test-fast: setup
	$(TESTS) -m "not slow and not network"

lint: setup
	$(VENV)/bin/ruff check .

types: setup
	$(VENV)/bin/mypy

bench: setup
	$(RUN) -m benchmarks.decode

gpu: setup
	$(RUN) -m benchmarks.gpu

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache mt_bench/demo
