"""What the tests of collecting share: a small collection, its command line, its rows."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from conftest import PairFolders, make_tokenizer

from dsl_train.collect.config import CollectConfig
from dsl_train.pair.identity import describe_model
from dsl_train.pair.loading import Pair
from dsl_train.traces.store import open_traces

#: A collection of its own process, which dies between the two files of part {part}; takes the command line.
DIES_IN_PART = """
import os, signal, sys
from dsl_train.base import files
from dsl_train.cli.collect import main

replace = os.replace
def replace_or_die(source, destination):
    if str(destination).endswith("sequences/part-{part:05d}.parquet"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, destination)

files.os.replace = replace_or_die
main(sys.argv[1:])
"""
PROMPTS = Path(__file__).parent.parent / "data" / "prompts" / "python.jsonl"


def make_config(folders: PairFolders, output: Path, **changes: Any) -> CollectConfig:
    """Six prompts, 24 tokens each, in three parts."""
    settings = {"prompts": str(PROMPTS), "num_prompts": 6, "max_new_tokens": 24, "part_size": 2, "device": "cpu"}
    return CollectConfig(folders.target, folders.draft, str(output), **{**settings, **changes})


def make_pair(target, draft) -> Pair:
    tokenizer = make_tokenizer()
    return Pair(target, draft, tokenizer, describe_model(target, "target"), describe_model(draft, "draft"))


def arguments(config: CollectConfig) -> list[str]:
    named = dataclasses.asdict(config).items()
    return [f"--{name}={value}" for name, value in named if value is not None]


def tables(folder: Path) -> dict[str, bytes]:
    """Content of every Parquet file, by its name below the folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.parquet"))}


def rows_by_text(*folders: Path) -> dict[tuple[Any, ...], dict[str, np.ndarray]]:
    """Rows of every text, wherever it was collected: its tokens and sampling -> columns."""
    traces = open_traces(list(folders))
    found = {}
    for sequence in traces.sequences:
        own = traces.rows["sequence_id"] == sequence.sequence_id
        tokens = (tuple(sequence.prompt_token_ids.tolist()), tuple(sequence.response_token_ids.tolist()))
        columns = {name: column[own] for name, column in traces.rows.items() if name != "sequence_id"}
        found[(*tokens, sequence.temperature, sequence.finish_reason)] = columns
    assert len(found) == len(traces.sequences)
    return found


def assert_same_rows(found: dict, expected: dict) -> None:
    """Ids and labels equal, primitives to 1e-4: batches of another shape add up in another order."""
    assert found.keys() == expected.keys()
    for text, columns in expected.items():
        for name, column in columns.items():
            if column.dtype.kind == "f":
                np.testing.assert_allclose(found[text][name], column, atol=1e-4, err_msg=name)
            else:
                np.testing.assert_array_equal(found[text][name], column, err_msg=name)
