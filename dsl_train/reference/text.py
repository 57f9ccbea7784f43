"""The byte-level BPE tokenizer of the reference pair, token streams of its corpus and the batches cut from them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dsl_train.reference.corpus import HELD_OUT_TEST, SOURCE_WEIGHTS, held_out_files, training_files

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (GPT-2's splitting rule) whose only special token, id 0, both begins and ends a file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


class TokenStreams:
    """One uint16 array of tokens per source. Batches depend on (seed, step) alone, so a resumed run sees what
    an uninterrupted one would have seen."""

    def __init__(self, streams: dict[str, np.ndarray]) -> None:
        self.streams = streams

    @classmethod
    def build(cls, tokenizer: PreTrainedTokenizerBase, cache: Path) -> "TokenStreams":
        """Tokenise every source once; later calls read ``cache/<source>.npy``."""
        streams = {}
        for source in (*SOURCE_WEIGHTS, "validation"):
            path = cache / f"{source}.npy"
            if not path.exists():
                texts = held_out_files(HELD_OUT_TEST).values() if source == "validation" else training_files(source)
                np.save(path, encode_files(tokenizer, list(texts)))
            streams[source] = np.load(path, mmap_mode="r")
        return cls(streams)

    def batch(self, step: int, batch_size: int, length: int, seed: int) -> torch.Tensor:  # [B, T] int64
        """Random crops, each from a source drawn by ``SOURCE_WEIGHTS``."""
        rng = np.random.default_rng((seed, step))
        sources = rng.choice(list(SOURCE_WEIGHTS), size=batch_size, p=list(SOURCE_WEIGHTS.values()))
        return torch.stack([self._crop(source, length, rng) for source in sources])

    def validation(self, batch_size: int, length: int, num_batches: int) -> list[torch.Tensor]:  # each [B, T]
        """Evenly spaced windows of the held-out test modules."""
        stream = self.streams["validation"]
        starts = np.linspace(0, len(stream) - length, batch_size * num_batches).astype(int)
        windows = torch.stack([_window(stream, start, length) for start in starts])
        return list(windows.split(batch_size))

    def _crop(self, source: str, length: int, rng: np.random.Generator) -> torch.Tensor:
        stream = self.streams[source]
        return _window(stream, int(rng.integers(len(stream) - length)), length)


def encode_files(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:  # [total] uint16
    """All files in one stream, the end-of-text token before each."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return np.concatenate([np.array([tokenizer.eos_token_id, *row], dtype=np.uint16) for row in rows])


def _window(stream: np.ndarray, start: int, length: int) -> torch.Tensor:
    return torch.from_numpy(stream[start : start + length].astype(np.int64))
