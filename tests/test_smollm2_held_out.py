"""What is held out from SmolLM2's draft becomes responses that dsl-collect reads, and nothing else does."""

import json
from pathlib import Path

from dsl_train.base import files
from dsl_train.reference.smollm2 import held_out
from dsl_train.reference.smollm2.answers import pack


def write_wave(path: Path, numbers: range, temperature: float) -> None:
    """Text i has i + 1 prompt tokens and i + 2 answer tokens, all of id i."""
    path.parent.mkdir(exist_ok=True)
    prompts, answers = [[i] * (i + 1) for i in numbers], [[i] * (i + 2) for i in numbers]
    files.write_bytes(path, pack(prompts, answers, "chat", temperature))


def test_only_prompts_that_were_not_trained_on_are_written_by_how_they_were_sampled(tmp_path, capsys, monkeypatch):
    write_wave(tmp_path / "answers" / "wave-0000-00000.safetensors", range(4), 0.0)
    write_wave(tmp_path / "held_out" / "wave-0001-00000.safetensors", range(2, 7), 0.0)
    write_wave(tmp_path / "held_out" / "wave-0001-00001.safetensors", range(7, 9), 0.8)
    folders = [f"--{name}={tmp_path / name}" for name in ("answers", "held_out", "output")]
    monkeypatch.setattr("sys.argv", ["held_out", *folders])
    held_out.main()
    greedy, sampled = (
        [json.loads(line) for line in (tmp_path / "output" / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("greedy", "sampled")
    )
    assert sorted(row["response_token_ids"][0] for row in greedy) == [4, 5, 6]
    assert sorted(len(row["prompt_token_ids"]) for row in sampled) == [8, 9]
    assert [{row["temperature"] for row in rows} for rows in (greedy, sampled)] == [{0.0}, {0.8}]
    assert "greedy.jsonl: 3 answers, 21 tokens" in capsys.readouterr().out
