PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo
PAIR := --target checkpoints/reference/target --draft checkpoints/reference/draft

.PHONY: demo test lint clean

demo: $(READY)  ## the whole job on the reference pair: collect, train, generate, prove
	$(BIN)/dsl-collect $(PAIR) --prompts data/prompts/heldout_train.jsonl --num_prompts 100 --output $(DEMO)/traces
	$(BIN)/dsl-train --traces $(DEMO)/traces --output $(DEMO)/predictor
	$(BIN)/dsl-generate $(PAIR) --predictor $(DEMO)/predictor --show_lookahead --prompts data/prompts/python.jsonl --num_prompts 2
	$(BIN)/dsl-bench $(PAIR) --predictor $(DEMO)/predictor --prompts data/prompts/heldout_test.jsonl --num_prompts 8 --repeats 1 --output $(DEMO)/bench

test: $(READY) lint  ## everything CI checks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build runs
