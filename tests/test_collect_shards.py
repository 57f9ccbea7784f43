"""Shares of a collection: who collects what, that all together are the whole, and Ray's actors."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from collecting import arguments, assert_same_rows, make_config, rows_by_text, tables

from dsl_train.base.records import DslError
from dsl_train.cli.collect import main
from dsl_train.collect.shards import collect
from dsl_train.collect.split import Shard, local_device, shard_of
from dsl_train.traces.store import open_traces


@pytest.fixture
def config(pair_folders, tmp_path):
    return make_config(pair_folders, tmp_path / "traces", temperature=1.0)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Shard(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Shard(3, 8)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, Shard(2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Shard(0, 1)),  # a batch script outside srun
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "9"}, Shard(1, 2)),
    ],
)
def test_the_launcher_says_which_shard_this_is(environment, expected):
    assert shard_of(None, None, environment) == expected


def test_an_array_job_is_shared_by_its_tasks_and_theirs():
    array = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "5"}
    found = [shard_of(None, None, {**array, "SLURM_ARRAY_TASK_ID": task}) for task in ("10", "15", "20")]
    assert found == [Shard(0, 3), Shard(1, 3), Shard(2, 3)]
    step = {"SLURM_ARRAY_TASK_ID": "15", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}
    assert shard_of(None, None, {**array, **step}) == Shard(6, 12)


def test_flags_win_over_the_launcher():
    launched = {"RANK": "3", "WORLD_SIZE": "8"}
    assert shard_of(5, 4, launched) == Shard(4, 5)
    assert shard_of(1, None, launched) == Shard(0, 1)


def test_a_launcher_that_makes_no_sense_is_named():
    with pytest.raises(DslError, match=r"RANK and WORLD_SIZE say shard 8 of 8, .* 0 to 7; give --num_shards"):
        shard_of(None, None, {"RANK": "8", "WORLD_SIZE": "8"})
    with pytest.raises(DslError, match=r"RANK is None, not a number"):
        shard_of(None, None, {"WORLD_SIZE": "8"})


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert local_device("auto", {"LOCAL_RANK": "2"}) == "cuda:2"
    assert local_device("auto", {"SLURM_LOCALID": "5"}) == "cuda:1"
    assert local_device("auto", {}) == "auto"
    assert local_device("cpu", {"LOCAL_RANK": "2"}) == "cpu"


def test_the_shards_together_have_the_rows_of_one_run(config, tmp_path):
    collect(dataclasses.replace(config, output=str(tmp_path / "whole")))
    for index in range(4):
        collect(dataclasses.replace(config, num_shards=4, shard_index=index))
    shards = sorted(path.name for path in Path(config.output).iterdir())
    assert shards == [f"shard-0000{index}-of-00004" for index in range(4)]
    together = rows_by_text(Path(config.output))
    assert_same_rows(together, rows_by_text(tmp_path / "whole"))
    assert_same_rows(rows_by_text(*(Path(config.output) / name for name in shards)), together)


def test_a_launched_process_collects_its_shard_and_a_missing_one_is_named(config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(arguments(config)) == 0
    shard = Path(config.output) / "shard-00001-of-00002"
    assert json.loads((shard / "manifest.json").read_text())["shard"] == {"index": 1, "number": 2}
    assert len(open_traces([shard]).sequences) == 3
    with pytest.raises(DslError, match=r"traces lacks shard-00000-of-00002; collect all shards"):
        open_traces([Path(config.output)])


def test_shards_of_two_numbers_in_one_folder_are_refused(config):
    for number in (1, 2):
        (Path(config.output) / f"shard-00000-of-0000{number}").mkdir(parents=True)
    with pytest.raises(DslError, match=r"holds shards of \[1, 2\] at once"):
        open_traces([Path(config.output)])


def test_a_shard_without_prompts_is_complete_and_empty(config):
    few = dataclasses.replace(config, num_prompts=2, num_shards=3, shard_index=0)
    assert [collect(dataclasses.replace(few, shard_index=i)).counts.num_sequences for i in range(3)] == [1, 1, 0]
    assert len(open_traces([Path(config.output)]).sequences) == 2


RAY = """
import os, signal, sys
from dsl_train.cli.collect import main
from dsl_train.collect import ray as door
from dsl_train.collect.worker import Worker

class Mortal(Worker):
    def run(self, part, tasks):
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))  # the first actor to come here
        except FileExistsError:
            return super().run(part, tasks)
        os.kill(os.getpid(), signal.SIGKILL)

marker = sys.argv[1]
door.collect_by_actors.__defaults__ = (Mortal,)
sys.exit(main(sys.argv[2:]))
"""


def test_ray_actors_write_the_same_bytes_though_one_of_them_dies(config, tmp_path):
    pytest.importorskip("ray")
    collect(dataclasses.replace(config, output=str(tmp_path / "whole")))
    config = dataclasses.replace(config, executor="ray", num_actors=2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RAY, str(tmp_path / "died"), *arguments(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "died").exists()
    assert tables(Path(config.output)) == tables(tmp_path / "whole")
    cost = json.loads((Path(config.output) / "manifest.json").read_text())["cost"]
    assert cost["draft_step"] > 0


def test_a_cluster_that_is_too_small_is_named_instead_of_waited_for(monkeypatch, config):
    ray = pytest.importorskip("ray")
    from dsl_train.collect.ray import _check_size

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(DslError, match=r"3 actors need 3 CPUs but the Ray cluster has 2; lower --num_actors"):
        _check_size(dataclasses.replace(config, executor="ray", num_actors=3))
    with pytest.raises(DslError, match=r"2 actors need 1 GPUs but the Ray cluster has 0"):
        _check_size(dataclasses.replace(config, executor="ray", num_actors=2, gpus_per_actor=0.5))
