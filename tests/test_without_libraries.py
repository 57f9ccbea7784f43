"""The library without the parser of its commands and without `datasets`: everything imports, everything runs."""

import json
import os
import subprocess
import sys

import pytest
from absent import WITHOUT
from collecting import PROMPTS

JOB = f"""
ABSENT = "jsonargparse datasets"
{WITHOUT}
import json, pkgutil, sys
from importlib import import_module
from pathlib import Path

import dsl_train, dsl_train.hf

for module in pkgutil.walk_packages(dsl_train.__path__, "dsl_train."):
    if module.name.startswith("dsl_train.vllm"):  # for an environment of its own
        continue
    import_module(module.name)

from dsl_train.api import calibration
from dsl_train.bench.config import BenchConfig
from dsl_train.bench.live import run_live
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.shards import collect
from dsl_train.train.config import TrainConfig
from dsl_train.train.fit import fit

calibration.MAX_SECONDS = 0.0
target, draft, prompts, folder = sys.argv[1:]
source = {{"prompts": prompts, "num_prompts": 6, "max_new_tokens": 12, "device": "cpu"}}
traces = collect(CollectConfig(target, draft, f"{{folder}}/traces", **source)).traces
fit(TrainConfig([traces], Path(folder, "predictor"), epochs=1))
options = {{"predictor": f"{{folder}}/predictor", "max_new_tokens": 8}}
text = dsl_train.generate(target, draft, "def f", **options)
bench = BenchConfig(target=target, draft=draft, predictor=Path(folder, "predictor"), policies=["learned"], **source)
print(json.dumps([text.result.num_tokens, [policy.name for policy in run_live(bench).policies]]))
try:
    collect(CollectConfig(target, draft, f"{{folder}}/more", prompts="owner/name"))
except dsl_train.base.records.DslError as error:
    print(error)
"""

COMMAND = f"""
ABSENT = sys.argv.pop(1)
{WITHOUT}
from dsl_train.cli.{{}} import main
sys.exit(main())
"""


def run(code, *words):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env)


def test_collecting_training_and_generating_need_no_parser_and_no_datasets(pair_folders, tmp_path):
    done = run(JOB, pair_folders.target, pair_folders.draft, str(PROMPTS), str(tmp_path))
    assert done.returncode == 0, done.stderr
    numbers, refusal = done.stdout.splitlines()[-2:]
    num_tokens, policies = json.loads(numbers)
    assert 1 <= num_tokens <= 8
    assert "learned" in policies
    assert refusal.startswith(
        "'owner/name' is no file, and reading it as a dataset needs datasets, which is not installed"
    )


@pytest.mark.parametrize("command", ["collect", "train", "generate", "bench"])
def test_a_command_without_its_parser_says_so_in_one_sentence(command):
    done = run("import sys" + COMMAND.format(command), "jsonargparse", "--help")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: this command needs jsonargparse, which is not installed; run pip install")


def test_a_command_without_a_library_that_it_works_with_says_so_in_one_sentence(tmp_path):
    words = ("--traces", str(tmp_path), "--output", str(tmp_path / "out"))
    done = run("import sys" + COMMAND.format("train"), "lightning pytorch_lightning", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: this command needs lightning, which is not installed"), done.stderr
