# Everything a machine with Python 3.11-3.13 and make needs: `make demo`, `make test`.

PYTHON ?= python3
# On Linux, PyPI's torch is the CUDA build; TORCH_INDEX=https://download.pytorch.org/whl/cpu fetches the small CPU one.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet
QUESTIONS := 8
NEW_TOKENS := 96
DEMO := mt_bench/demo/smollm2-135m-temperature

.PHONY: setup demo test test-fast lint types bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: setup.py requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PIP) install --editable ".[dev,train]"
	touch $@

demo: setup
	rm -rf mt_bench/demo
	set -e; for temperature in 1.0 0.0; do \
	  run="--folder_id demo --temperature $$temperature --question-end $(QUESTIONS) --max-new-token $(NEW_TOKENS)"; \
	  $(RUN) -m eagle.evaluation.gen_baseline_answer_llama3chat $$run; \
	  $(RUN) -m eagle.evaluation.gen_ea_answer_llama3chat --use_eagle3 $$run; \
	  $(RUN) -m eagle.evaluation.gen_ea_answer_llama3chat --use_eagle3 --hsd $$run; \
	done; \
	for temperature in 1.0 0.0; do \
	  $(RUN) -m eagle.evaluation.compare $(DEMO)-$${temperature}_baseline.jsonl $(DEMO)-$${temperature}_ea.jsonl $(DEMO)-$${temperature}_ea_hsd.jsonl; \
	done

test: setup lint types
	$(RUN) -m pytest

test-fast: setup
	$(RUN) -m pytest -m "not slow and not network"

lint: setup
	$(VENV)/bin/ruff check .

types: setup
	$(VENV)/bin/mypy

bench: setup
	$(RUN) -m benchmarks.decode

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache mt_bench/demo
