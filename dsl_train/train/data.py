"""Decisions as batches for Lightning, split by prompt: all decisions of one prompt are on one side.

Letters: N rows, F features of the chosen names.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import lightning
import numpy as np
import torch

from dsl_train.base.records import DslError
from dsl_train.features import entries
from dsl_train.traces.blocks import soft_survival
from dsl_train.traces.decisions import Decisions

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_VALIDATION_BATCH = 65_536


Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Features [n, F], soft survival [n] in [0, 1], weight [n] as `Decisions.weight`."""


class Batches:
    """A part in batches that are slices of whole tensors, without work for each row. A generator shuffles them."""

    def __init__(self, part: Part, batch_size: int, generator: torch.Generator | None = None) -> None:
        self.part, self.batch_size, self.generator = part, batch_size, generator
        self.num_rows = len(part[0])

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[Part]:
        features, survival, weight = self.part
        shuffle = self.generator is not None
        order = torch.randperm(self.num_rows, generator=self.generator) if shuffle else torch.arange(self.num_rows)
        for rows in order.split(self.batch_size):
            yield features[rows], survival[rows], weight[rows]


class TraceDataModule(lightning.LightningDataModule):
    """Train, validation and test rows of `decisions`; `prompt_ids[i]` is the prompt of sequence i."""

    def __init__(
        self,
        decisions: Decisions,
        prompt_ids: Sequence[str],
        names: tuple[str, ...],
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.split_of_sequence = split_by_prompt(prompt_ids, seed)
        columns = [entries.FEATURE_NAMES.index(name) for name in names]
        split_of_row = self.split_of_sequence[decisions.sequence]
        self.rows = {split: np.flatnonzero(split_of_row == code) for code, split in enumerate(SPLITS)}
        self.features = torch.from_numpy(np.ascontiguousarray(decisions.features[:, columns], dtype=np.float32))
        self.survival = torch.from_numpy(soft_survival(decisions))
        self.weight = torch.from_numpy(decisions.weight)

    def part(self, split: Split) -> Part:
        """The rows of one split."""
        rows = torch.from_numpy(self.rows[split])
        return self.features[rows], self.survival[rows], self.weight[rows]

    def train_dataloader(self) -> Batches:
        return Batches(self.part("train"), self.batch_size, torch.Generator().manual_seed(self.seed))

    def val_dataloader(self) -> Batches:
        return Batches(self.part("val"), _VALIDATION_BATCH)

    def test_dataloader(self) -> Batches:
        return Batches(self.part("test"), _VALIDATION_BATCH)


def split_by_prompt(prompt_ids: Sequence[str], seed: int) -> np.ndarray:
    """0 train, 1 validation, 2 test for every sequence [S]: 80/10/10 of the prompts, at least one prompt each.

    Raises DslError if there are fewer than three prompts.
    """
    prompts, prompt_of_sequence = np.unique(np.asarray(prompt_ids, dtype=str), return_inverse=True)
    if len(prompts) < len(SPLITS):
        raise DslError(
            f"the traces hold {len(prompts)} prompt(s) but training, validation and test need one each: 3 at least, "
            f"30 or more to be useful; collect more with dsl-collect --num_prompts"
        )
    held_out = max(1, round(0.1 * len(prompts)))
    split_of_prompt = np.zeros(len(prompts), dtype=np.int8)
    order = np.random.default_rng(seed).permutation(len(prompts))
    split_of_prompt[order[:held_out]] = 1
    split_of_prompt[order[held_out : 2 * held_out]] = 2
    return split_of_prompt[prompt_of_sequence]
