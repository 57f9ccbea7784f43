"""Trace folders: what is written is what is read, and damage is named."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dsl_train.base.records import DslError
from dsl_train.base.schema import ROW_COLUMNS
from dsl_train.traces import store
from dsl_train.traces.store import Counts, TraceSequence, open_traces, write_manifest, write_part

IDENTITY = {"id": "a", "revision": "r", "vocab_size": 64, "architecture": "LlamaForCausalLM", "config_hash": "c"}
PAIR = {"target": IDENTITY, "draft": IDENTITY}


def rows(*keys):  # (sequence_id, index, depth)
    columns = {name: np.arange(len(keys)).astype(kind) for name, kind in ROW_COLUMNS.items()}
    for column, values in zip(("sequence_id", "index", "depth"), zip(*keys, strict=True), strict=True):
        columns[column] = np.array(values, ROW_COLUMNS[column])
    return columns


def sequence(sequence_id, response=(4, 5)):
    prompt = np.array([1, 2, 3], np.int32)
    return TraceSequence(sequence_id, f"id{sequence_id}", prompt, np.array(response, np.int32), 0.5, 3, 0.75, "length")


def write_folder(folder, pair=PAIR):
    write_part(folder, 0, rows((0, 3, 0), (0, 4, 0), (0, 4, 1)), [sequence(0)])
    write_part(folder, 1, rows((7, 3, 0), (5, 4, 0)), [sequence(7, (6,)), sequence(5, ())])
    write_manifest(folder, {"pair": pair})
    return folder


def test_what_was_written_comes_back_sorted_with_its_types(tmp_path):
    opened = open_traces([write_folder(tmp_path)])
    assert {name: str(column.dtype) for name, column in opened.rows.items()} == ROW_COLUMNS
    assert opened.rows["sequence_id"].tolist() == [0, 0, 0, 1, 2]
    assert opened.rows["token_id"].tolist() == [0, 1, 2, 1, 0]
    assert [s.prompt_id for s in opened.sequences] == ["id0", "id5", "id7"]
    assert [s.response_token_ids.tolist() for s in opened.sequences] == [[4, 5], [], [6]]
    first = opened.sequences[0]
    assert (first.temperature, first.top_k, first.top_p, first.finish_reason) == (0.5, 3, 0.75, "length")
    assert first.prompt_token_ids.tolist() == [1, 2, 3]
    assert len(opened) == 5
    assert opened.pair == PAIR


def test_sequences_of_several_folders_are_numbered_anew(tmp_path):
    folders = [write_folder(tmp_path / "one"), write_folder(tmp_path / "two")]
    opened = open_traces(folders)
    assert [s.sequence_id for s in opened.sequences] == list(range(6))
    assert opened.rows["sequence_id"].tolist() == [0, 0, 0, 1, 2, 3, 3, 3, 4, 5]


def test_a_part_counts_as_complete_only_with_its_sequences(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "sequences" / "part-00000.parquet").unlink()
    assert store.completed_parts(tmp_path) == [1]
    assert store.part_counts(tmp_path, 1) == Counts(num_sequences=2, num_rows=2, num_tokens=2, num_accepted=1)


def test_a_part_without_any_sequence_is_read(tmp_path):
    write_part(tmp_path, 0, store.join_rows([]), [])
    write_part(tmp_path, 1, rows((1, 3, 0)), [sequence(1)])
    write_manifest(tmp_path, {"pair": PAIR})
    assert len(open_traces([tmp_path])) == 1


def test_the_tables_load_with_the_datasets_library_as_they_are(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = write_folder(tmp_path / "traces")
    files = [str(file) for file in sorted((folder / "rows").iterdir())]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == list(ROW_COLUMNS)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DslError, match=r"nowhere does not exist; collect it with dsl-collect"):
        open_traces([tmp_path / "nowhere"])


def test_an_unfinished_folder_says_how_to_finish_it(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "collection.json").write_text("{}")
    with pytest.raises(DslError, match=r"unfinished: run the same dsl-collect command again"):
        open_traces([tmp_path])


def test_traces_of_another_version_are_named_with_both(tmp_path):
    manifest = json.loads((write_folder(tmp_path) / "manifest.json").read_text())
    manifest["schema"] = {"version": 9}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DslError, match=r"version 9, but version 2 and older are read here; collect again"):
        open_traces([tmp_path])


@pytest.mark.parametrize("table", ["rows", "sequences"])
def test_a_truncated_file_is_named_with_what_to_delete(tmp_path, table):
    file = write_folder(tmp_path) / table / "part-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DslError, match=rf"{table}/part-00001.parquet is not a whole Parquet file.*delete .*part-00001"):
        open_traces([tmp_path])


@pytest.mark.parametrize("table", ["rows", "sequences"])
def test_a_changed_value_is_refused_though_the_file_can_be_read(tmp_path, table):
    file = write_folder(tmp_path) / table / "part-00001.parquet"
    found = pq.read_table(file)
    column = found.schema.names.index("sequence_id")
    pq.write_table(found.set_column(column, "sequence_id", pa.array([8, 5])), file)
    with pytest.raises(DslError, match=rf"{table}/part-00001.parquet is not a whole Parquet file \(sha256 .*delete"):
        open_traces([tmp_path])


def test_an_edited_manifest_is_refused_until_its_seal_is_taken_off(tmp_path):
    path = write_folder(tmp_path) / "manifest.json"
    manifest = {**json.loads(path.read_text()), "parts": [0]}
    path.write_text(json.dumps(manifest))
    with pytest.raises(DslError, match=r"was edited .*delete the keys content_sha256 and sha256"):
        open_traces([tmp_path])
    del manifest["content_sha256"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DslError, match="content_sha256 is missing"):
        open_traces([tmp_path])
    del manifest["sha256"]
    path.write_text(json.dumps(manifest))
    assert len(open_traces([tmp_path]).sequences) == 1


def test_traces_older_than_digests_are_read(tmp_path):
    path = write_folder(tmp_path) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({key: manifest[key] for key in ("schema", "parts", "pair")}))
    assert len(open_traces([tmp_path])) == 5


def test_a_missing_part_is_named(tmp_path):
    (write_folder(tmp_path) / "rows" / "part-00001.parquet").unlink()
    with pytest.raises(DslError, match=r"rows/part-00001.parquet is missing; delete .* run the same"):
        open_traces([tmp_path])


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    file = write_folder(tmp_path) / "rows" / "part-00000.parquet"
    pq.write_table(pa.table({"sequence_id": [0], "index": [1]}), file)
    write_manifest(tmp_path, {"pair": PAIR})  # as if written so
    with pytest.raises(DslError, match=r"part-00000.parquet has no column 'depth', only sequence_id, index"):
        open_traces([tmp_path])


def test_rows_of_an_unlisted_sequence_are_refused(tmp_path):
    write_part(tmp_path, 0, rows((3, 3, 0)), [sequence(1)])
    write_manifest(tmp_path, {"pair": PAIR})
    with pytest.raises(DslError, match=r"rows of sequences that .* does not list"):
        open_traces([tmp_path])


def test_folders_of_different_pairs_are_refused_with_both_values(tmp_path):
    other = {**PAIR, "draft": {**IDENTITY, "id": "b", "config_hash": "d"}}
    folders = [write_folder(tmp_path / "one"), write_folder(tmp_path / "two", other)]
    with pytest.raises(
        DslError, match=r"one and .*two come from different draft models: config_hash c \(a\) and d \(b\)"
    ):
        open_traces(folders)


@pytest.mark.parametrize(
    "change", [{"pair": None}, {"parts": None}, {"parts": ["0"]}, {"pair": {"target": IDENTITY}}, {"counts": 3}]
)
def test_a_manifest_that_lacks_what_is_read_from_it_is_damaged(tmp_path, change):
    path = write_folder(tmp_path) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DslError, match=r"manifest.json is damaged \("):
        open_traces([tmp_path])


def test_rows_without_any_sequence_are_refused(tmp_path):
    write_part(tmp_path, 0, rows((3, 3, 0)), [])
    write_manifest(tmp_path, {"pair": PAIR})
    with pytest.raises(DslError, match=r"rows of sequences that .* does not list"):
        open_traces([tmp_path])
