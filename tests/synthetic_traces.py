"""Trace folders of texts that no model wrote: acceptance depends on the recorded confidence, so there is something to
learn. For the tests of training."""

from pathlib import Path
from typing import Any

import numpy as np

from dsl_train.base import schema
from dsl_train.traces import store

VOCAB_SIZE = 64
PAIR: dict[str, Any] = {
    role: {
        "id": f"models/{role}",
        "revision": None,
        "architecture": "LlamaForCausalLM",
        "vocab_size": VOCAB_SIZE,
        "config_hash": f"{role}-hash",
        "dtype": "float32",
    }
    for role in ("target", "draft")
}


def write_traces(
    folder: Path, num_prompts: int = 24, length: int = 48, tail: int = 4, seed: int = 0, texts_per_prompt: int = 1
) -> Path:
    """A complete folder of one part."""
    rng = np.random.default_rng(seed)
    parts, sequences = [], []
    for number in range(num_prompts * texts_per_prompt):
        parts.append(_rows(rng, number, length, tail))
        sequences.append(
            store.TraceSequence(
                sequence_id=number,
                prompt_id=f"prompt-{number // texts_per_prompt}",
                prompt_token_ids=rng.integers(2, VOCAB_SIZE, 4).astype(np.int32),
                response_token_ids=parts[-1]["text_token_id"][parts[-1]["depth"] == 0].astype(np.int32),
                temperature=0.0,
                top_k=0,
                top_p=1.0,
                finish_reason="length",
            )
        )
    rows = {name: np.concatenate([part[name] for part in parts]) for name in schema.ROW_COLUMNS}
    store.write_part(folder, 0, rows, sequences)
    store.write_manifest(folder, {"pair": PAIR})
    return folder


def _rows(rng: np.random.Generator, sequence_id: int, length: int, tail: int) -> store.Rows:
    ease = np.repeat(rng.normal(1.0, 2.0, length // 8 + 1), 8)[:length]  # stretches of easy and of hard text
    accepted = rng.random(length) < 1 / (1 + np.exp(-ease))
    counts = np.where(accepted, 1, 1 + tail)
    token = np.repeat(np.arange(length), counts)
    depth = np.arange(len(token)) - np.repeat(np.cumsum(counts) - counts, counts)
    on_text = depth == 0
    confidence = np.where(on_text, ease[token], 0.0) + rng.normal(0.0, 0.7, len(token))
    top = -np.log1p(np.exp(-confidence))
    text = rng.integers(2, VOCAB_SIZE, length)
    drafted = np.where(on_text & accepted[token], text[token], (text[token] + 1 + depth) % VOCAB_SIZE)
    columns = {
        "sequence_id": np.full(len(token), sequence_id),
        "index": 4 + token,
        "depth": depth,
        "token_id": np.maximum(drafted, 2),
        "entropy": -top * 2.0,
        **{f"log_prob_{rank}": top - 0.6 * (rank - 1) for rank in range(1, 6)},
        "token_log_prob": top,
        "accept_prob": np.where(on_text, accepted[token], np.nan),
        "accept_ratio": np.where(on_text, accepted[token], np.nan),
        "accepted": on_text & accepted[token],
        "agreement": np.where(on_text, accepted[token], np.nan),
        "text_token_id": np.where(on_text, text[token], -1),
        "target_entropy": np.where(on_text, np.exp(-ease[token] / 2), np.nan),
        "target_top_prob": np.where(on_text, 1 / (1 + np.exp(-ease[token])), np.nan),
    }
    return {name: np.asarray(column, dtype=schema.ROW_COLUMNS[name]) for name, column in columns.items()}
