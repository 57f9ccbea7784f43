"""`kill -9` at random moments: what was finished stays, and the whole comes out byte for byte."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from collecting import DIES_IN_PART, arguments, make_config, tables

from dsl_train.collect.shards import collect
from dsl_train.traces.store import completed_parts

#: Everything is imported and loaded once; each life is a fork of that, killed at a random moment of its work.
LIVES = """
import functools, os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from dsl_train.cli.collect import main
from dsl_train.collect import worker

folder, num_kills, argv = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
torch.set_num_threads(1)
worker.load_pair = functools.cache(worker.load_pair)
option = {name: value for name, _, value in (argument.partition("=") for argument in argv)}
cost = worker.calibrate(worker.load_pair(option["--target"], option["--draft"], "float32", "cpu", None, None))
worker.calibrate = lambda *_, **__: cost  # longer than the rest of a life

def live(seconds=None):
    child = os.fork()
    if not child:
        os._exit(main([*argv, f"--output={folder}"]))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

def timed():
    began = time.perf_counter()
    assert live() == 0
    return time.perf_counter() - began

total, start = timed(), timed()  # the second one finds everything done
shutil.rmtree(folder)
luck, parts = random.Random(0), []
while len(parts) < num_kills:
    if live(luck.uniform(start / 2, start + (total - start) / 5)) == signal.SIGKILL:
        parts.append(len(list(folder.glob("sequences/*.parquet"))))
        if (folder / "manifest.json").exists():
            shutil.rmtree(folder)  # killed too late: it was complete
assert live() == 0
assert len(set(parts)) > 2, f"the kills met the same state again and again: {parts}"
"""


def run(script, *argv):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", script, *argv], env=environment, capture_output=True, text=True)


def test_a_kill_between_the_two_files_of_a_part_costs_that_part_alone(pair_folders, tmp_path):
    config = make_config(pair_folders, tmp_path / "killed", part_size=1, temperature=1.0)
    killed, whole = Path(config.output), tmp_path / "whole"
    assert run(DIES_IN_PART.format(part=2), *arguments(config)).returncode == -signal.SIGKILL
    assert completed_parts(killed) == [0, 1]
    assert (killed / "rows" / "part-00002.parquet").exists()
    assert not (killed / "manifest.json").exists()
    collect(config)
    collect(dataclasses.replace(config, output=str(whole)))
    assert not list(killed.rglob("*.tmp"))
    assert len(tables(killed)) == 12
    assert tables(killed) == tables(whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_twenty_random_kills_change_no_byte(pair_folders, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(f'{{"prompt": "def f{i}(x):"}}' for i in range(48)))
    changes = {"prompts": str(prompts), "num_prompts": None, "part_size": 1, "temperature": 1.0, "num_threads": 1}
    config = make_config(pair_folders, tmp_path / "whole", **changes)
    collect(config)
    argv = [argument for argument in arguments(config) if not argument.startswith("--output")]
    done = run(LIVES, str(tmp_path / "killed"), "20", *argv)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list((tmp_path / "killed").rglob("*.tmp"))
    assert len(tables(tmp_path / "whole")) == 96
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
