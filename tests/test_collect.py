"""A collection and its folder: what it says of itself, what it survives, what it refuses."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from collecting import PROMPTS, arguments, assert_same_rows, make_config, rows_by_text, tables
from conftest import make_model

from dsl_train.base import files
from dsl_train.base.records import DslError
from dsl_train.cli.collect import main
from dsl_train.collect.estimate import estimate
from dsl_train.collect.folder import locked
from dsl_train.collect.shards import collect
from dsl_train.traces.store import completed_parts, open_traces


@pytest.fixture
def config(pair_folders, tmp_path):
    return make_config(pair_folders, tmp_path / "traces")


@pytest.fixture
def folder(config):
    return Path(config.output)


def test_a_collection_opens_as_traces_and_says_what_it_is(config, folder, capsys):
    assert main([*arguments(config), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    opened = open_traces([folder])
    manifest = opened.manifests[0]
    assert printed["num_rows"] == len(opened) == manifest["counts"]["num_rows"]
    assert len(opened.sequences) == 6
    assert manifest["pair"]["target"]["vocab_size"] == 64
    assert manifest["sampling"]["max_new_tokens"] == 24
    assert manifest["parts"] == [0, 1, 2]
    assert manifest["cost"]["c"] == manifest["cost"]["draft_step"] / manifest["cost"]["target_step"]
    assert (manifest["num_rejects"], manifest["rejects_by_reason"]) == (0, {})


@pytest.mark.parametrize("method", ["hindsight", "oracle"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_do_not_depend_on_order_parts_or_batches(config, folder, tmp_path, method, temperature):
    lines = PROMPTS.read_text().splitlines()[:6]
    (tmp_path / "reversed.jsonl").write_text("\n".join(reversed(lines)))
    config = dataclasses.replace(config, method=method, temperature=temperature, batch_size=1)
    changes = {"prompts": str(tmp_path / "reversed.jsonl"), "output": str(tmp_path / "other")}
    collect(config)
    collect(dataclasses.replace(config, **changes, part_size=5, batch_size=3))
    assert_same_rows(rows_by_text(tmp_path / "other"), rows_by_text(folder))


def test_a_finished_collection_is_left_alone_and_needs_no_weights(config, folder, monkeypatch):
    collect(config)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.*") if file.name != ".lock"}
    monkeypatch.setattr("dsl_train.collect.worker.load_pair", None)
    assert collect(config).counts.num_sequences == 6
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize("part_size", [2, 4])
@pytest.mark.parametrize("num_shards", [None, 2])
def test_a_collection_grows_by_more_prompts(config, folder, tmp_path, part_size, num_shards):
    """The last part was full, or was not; a collection that was not finished grows, too."""
    shard = {"num_shards": num_shards, "shard_index": num_shards and 0}
    config = dataclasses.replace(config, part_size=part_size, **shard)
    whole = dataclasses.replace(config, num_prompts=11, output=str(tmp_path / "whole"))
    made = collect(whole)
    first = collect(config)
    (first.folder / "sequences" / "part-00000.parquet").unlink()
    more = dataclasses.replace(config, num_prompts=11)
    estimated = estimate(dataclasses.replace(more, dry_run=True))
    full = first.counts.num_sequences // part_size
    assert estimated.num_parts_done == max(0, full - 1)
    grown = collect(more)
    assert tables(grown.folder) == tables(made.folder)
    assert grown.counts == made.counts
    open_traces([grown.folder])
    with pytest.raises(DslError, match="not shrink"):
        collect(config)


def test_a_folder_of_another_collection_is_refused_and_kept(config, folder, tmp_path):
    collect(config)
    before = (folder / "manifest.json").read_text()
    with pytest.raises(DslError, match=r"holds another collection: its temperature is 0.0, now 0.5; repeat .*--output"):
        collect(dataclasses.replace(config, temperature=0.5))
    with pytest.raises(DslError, match=r"its prompts' number is 6, now 3; .* not shrink: ask for at least 6 texts"):
        collect(dataclasses.replace(config, num_prompts=3))
    lines = PROMPTS.read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(lines[1:9]))
    with pytest.raises(DslError, match=r"its prompts' number is 6, now 8; .* the first 6 of these texts are not those"):
        collect(dataclasses.replace(config, prompts=str(tmp_path / "other.jsonl"), num_prompts=None))
    with pytest.raises(DslError, match=r"its target's dtype is 'float32', now 'bfloat16'"):
        collect(dataclasses.replace(config, dtype="bfloat16"))
    assert (folder / "manifest.json").read_text() == before


def test_what_only_changes_the_speed_may_change_on_the_way(config, folder):
    collect(config)
    (folder / "manifest.json").unlink()
    (folder / "sequences" / "part-00001.parquet").unlink()
    assert collect(dataclasses.replace(config, batch_size=1, num_threads=1)).counts.num_sequences == 6


def test_a_second_run_into_a_folder_in_use_is_refused(config, folder):
    with locked(folder), pytest.raises(DslError, match=r"another dsl-collect is writing into"):
        collect(config)


@pytest.mark.parametrize("table", ["rows", "sequences"])
def test_a_damaged_part_is_collected_again(config, folder, table, caplog):
    collect(config)
    whole, damaged = tables(folder), folder / table / "part-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    collect(config)
    assert tables(folder) == whole
    assert f"part 1 will be collected again: {damaged} is not a whole Parquet file" in caplog.text
    assert (folder / "manifest.json").is_file()


def test_a_prompt_longer_than_the_context_is_put_aside_and_the_exit_code_tells(config, folder, tmp_path, capsys):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"prompt": "x" * 300}) + '\n{"prompt": "short"}\n{"prompt": \n{"prompt": "y"}')
    assert main(arguments(dataclasses.replace(config, prompts=str(prompts), num_prompts=None))) == 3
    assert f"2 put aside, see {folder / 'rejects'}; {prompts}, line 1: the prompt has 300" in capsys.readouterr().err
    manifest = open_traces([folder]).manifests[0]
    assert manifest["counts"]["num_sequences"] == manifest["num_rejects"] == 2
    assert sorted(manifest["rejects_by_reason"].values()) == [1, 1]
    by_part, on_reading = (
        [json.loads(line) for line in (folder / "rejects" / name).read_text().splitlines()]
        for name in ("part-00000.jsonl", "reading.jsonl")
    )
    assert by_part[0]["reason"].startswith("the prompt has 300 tokens but the models' context holds 256")
    assert (on_reading[0]["where"], on_reading[0]["prompt_id"]) == (f"{prompts}, line 3", "")


def test_a_collection_without_a_usable_prompt_fails(config, folder, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "x" * 300}))
    assert main(arguments(dataclasses.replace(config, prompts=str(tmp_path / "p.jsonl")))) == 1
    assert "none of the 1 texts could be used; the first: the prompt has 300 tokens" in capsys.readouterr().err
    assert not (folder / "manifest.json").exists()
    (tmp_path / "q.jsonl").write_text('{"nothing": 1}\n{"nothing": 2}')
    with pytest.raises(DslError, match=r"none of the 2 rows of .* the first: .*q.jsonl, line 1: no column 'prompt_tok"):
        collect(dataclasses.replace(config, prompts=str(tmp_path / "q.jsonl")))


@pytest.mark.parametrize("method", ["hindsight", "oracle"])
def test_a_text_that_a_model_fails_on_is_put_aside_and_the_others_stay(config, folder, tmp_path, method):
    """The draft fails wherever it reads token 3, `b`."""
    broken = make_model(1)
    with torch.no_grad():
        broken.model.embed_tokens.weight[3] = float("nan")
    broken.save_pretrained(tmp_path / "draft")
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in ("aaaa", "abba", "cccc")))
    changes = {"draft": str(tmp_path / "draft"), "prompts": str(prompts), "max_new_tokens": 2, "part_size": 4}
    found = collect(dataclasses.replace(config, method=method, **changes))
    assert [reject.where for reject in found.rejected] == [f"{prompts}, line 2"]
    assert "draft model's logits are not numbers (NaN)" in found.rejected[0].reason
    assert found.counts.num_sequences == 2


def test_an_output_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DslError, match=r"output folder .*file/traces cannot be written .*--output"):
        collect(dataclasses.replace(config, output=str(tmp_path / "file" / "traces")))


@pytest.mark.parametrize("full_at", range(2, 9))
def test_a_disk_that_fills_up_at_any_write_costs_nothing_that_was_finished(
    config, folder, monkeypatch, capsys, full_at, tmp_path
):
    collect(dataclasses.replace(config, output=str(tmp_path / "whole")))
    sync, writes = files._sync, []

    def full(path):
        writes.append(path)
        if len(writes) == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        sync(path)

    monkeypatch.setattr(files, "_sync", full)
    assert main(arguments(config)) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not list(folder.rglob("*.tmp"))
    kept = completed_parts(folder)
    monkeypatch.undo()
    assert kept == list(range(len(kept)))
    assert main(arguments(config)) == 0
    assert tables(folder) == tables(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"num_prompts": 0}, "num_prompts must be at least 1, not 0"),
        ({"tail_length": -1}, "tail_length must be at least 0, not -1"),
        ({"tail_fraction": 1.5}, "tail_fraction must be between 0 and 1, not 1.5"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], not 0.0"),
        ({"prompts": None}, "give prompts, or responses, or responses and the prompts that they answer"),
        ({"prompts": None, "responses": "log.jsonl", "method": "oracle"}, "oracle .* cannot use responses"),
        ({"num_shards": 4}, "num_shards is 4 but shard_index is not given"),
        ({"num_shards": 4, "shard_index": 4}, "shard_index is 4 but num_shards 4; it counts from 0"),
        ({"shard_index": 1}, "shard_index is 1 but num_shards None"),
        ({"num_actors": 2}, "num_actors and gpus_per_actor are for executor ray"),
    ],
)
def test_an_option_that_cannot_be_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def test_a_dry_run_measures_one_batch_and_writes_nothing(config, folder, capsys):
    collect(dataclasses.replace(config, num_prompts=6))
    (folder / "manifest.json").unlink()
    (folder / "sequences" / "part-00002.parquet").unlink()
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert main([*arguments(dataclasses.replace(config, dry_run=True, batch_size=1)), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    assert (printed["num_texts"], printed["num_parts"], printed["num_parts_done"]) == (6, 3, 2)
    assert printed["num_measured"] == 1
    assert 6 <= printed["num_tokens"] <= 6 * config.max_new_tokens <= printed["num_rows"] * config.max_new_tokens
    assert printed["peak_memory_bytes"] > 1e8 > printed["disk_bytes"] > 6000
    assert printed["seconds_left"] == pytest.approx(2 * printed["measured_seconds"])


def test_a_dry_run_refuses_what_the_run_would_refuse(config):
    collect(config)
    with pytest.raises(DslError, match=r"its seed is 0, now 1"):
        estimate(dataclasses.replace(config, seed=1, dry_run=True))
