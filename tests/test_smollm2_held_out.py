"""What is held out from SmolLM2's draft becomes responses that dsl-collect reads, and nothing else does."""

import json
from pathlib import Path

import pytest
import torch

from dsl_train.base import files
from dsl_train.reference.smollm2 import held_out
from dsl_train.reference.smollm2.answers import pack
from dsl_train.reference.smollm2.teacher import Answers
from dsl_train.reference.smollm2.texts import HELD_OUT, read_wave

NUM_LABELS = 3


def write_wave(path: Path, texts: int, temperature: float, first_prompt: tuple[int, ...] = (0,)) -> None:
    """Text i has i + 1 prompt tokens and i + 2 answer tokens, all of id i; the first prompt may be another."""
    prompts = [list(first_prompt), *([i] * (i + 1) for i in range(1, texts))]
    lengths = [i + 2 for i in range(texts)]
    top_ids = [torch.full((length, NUM_LABELS), i) for i, length in enumerate(lengths)]
    log_probs = [torch.full((length, NUM_LABELS), -float(i)) for i, length in enumerate(lengths)]
    answers = Answers([[i] * length for i, length in enumerate(lengths)], top_ids, log_probs)
    files.write_bytes(path, pack(prompts, answers, "chat", temperature))


def written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict], list[dict]]:
    """Rows of greedy.jsonl and of sampled.jsonl after the command."""
    output = folder / "out"
    monkeypatch.setattr("sys.argv", ["held_out", "--target=none", f"--answers={folder}", f"--output={output}"])
    held_out.main()
    greedy, sampled = (output / f"{name}.jsonl" for name in ("greedy", "sampled"))
    return tuple([json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in (greedy, sampled))


def test_a_wave_is_read_as_it_was_gathered(tmp_path):
    write_wave(tmp_path / "wave-0000-00000.safetensors", 4, 0.0)
    texts = read_wave(tmp_path / "wave-0000-00000.safetensors")
    assert [text.prompt_ids for text in texts] == [[0], [1, 1], [2, 2, 2], [3, 3, 3, 3]]
    assert [text.answer_ids for text in texts] == [[0, 0], [1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3, 3]]
    assert all(text.greedy and text.kind == "chat" for text in texts)
    assert texts[3].top_ids.shape == (5, NUM_LABELS)
    assert (texts[3].top_log_probs == -3.0).all()


def test_only_held_out_texts_are_written_by_how_they_were_sampled(tmp_path, capsys, monkeypatch):
    write_wave(tmp_path / "wave-0000-00000.safetensors", 2 * HELD_OUT, 0.0)
    write_wave(tmp_path / "wave-0001-00000.safetensors", HELD_OUT, 0.8)
    greedy, sampled = written(tmp_path, monkeypatch)
    assert sorted(row["response_token_ids"][0] for row in greedy) == [HELD_OUT - 1, 2 * HELD_OUT - 1]
    assert [len(row["prompt_token_ids"]) for row in sampled] == [HELD_OUT]
    assert {row["temperature"] for row in greedy} == {0.0}
    assert {row["temperature"] for row in sampled} == {0.8}
    assert f"sampled.jsonl: 1 answers, {HELD_OUT + 1} tokens" in capsys.readouterr().out


def test_a_prompt_that_was_trained_on_elsewhere_is_not_held_out(tmp_path, monkeypatch):
    held_out_prompt = (HELD_OUT - 1,) * HELD_OUT
    write_wave(tmp_path / "wave-0000-00000.safetensors", 2 * HELD_OUT, 0.0)
    write_wave(tmp_path / "wave-0001-00000.safetensors", HELD_OUT - 1, 0.8, first_prompt=held_out_prompt)
    greedy, sampled = written(tmp_path, monkeypatch)
    assert [row["response_token_ids"][0] for row in greedy] == [2 * HELD_OUT - 1]
    assert not sampled
