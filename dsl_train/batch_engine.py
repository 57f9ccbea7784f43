"""The loop for a batch: every text drafts, verifies and commits at its own pace, in shared forwards.

Each text has its own generator, its own view for features and its own row in both caches, so its law, and in greedy
float32 its very tokens, are those it has alone. Texts that have ended leave the batch. `autoregressive_batch` is the
slow twin. Letters: B texts, K drafted tokens of the longest block, V vocabulary.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from dsl_train.batch_drafter import BatchDrafter, BatchText
from dsl_train.drafter import DraftBlock
from dsl_train.engine import _greedy_agreements, _sampled_agreements, _Sequence
from dsl_train.feature_view import FeatureView
from dsl_train.policies.batch import BatchPolicy
from dsl_train.ragged import RaggedModel, check_ragged
from dsl_train.records import GenerationResult, Round
from dsl_train.sampling import Sampling, draw
from dsl_train.verify import Verdict, token_probs, verify, verify_greedy


class BatchEngine:
    """Generates for several prompts at once with a target, a draft and a policy of the batch.

    Raises DslError for a model that cannot be run in batches.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        policy: BatchPolicy,
        sampling: Sampling | None = None,
        eos_token_ids: Iterable[int] = (),
    ) -> None:
        for model in (target, draft):
            check_ragged(model)
        self.target, self.draft, self.policy = target, draft, policy
        self.sampling = sampling or Sampling()
        self.eos_token_ids = frozenset(eos_token_ids)

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 128, seeds: Sequence[int] | None = None
    ) -> list[GenerationResult]:
        """Continue every prompt, in order; `seeds` are one for each (default: 0, 1, ...).

        Raises DslError if a prompt is empty or does not fit the target's context.
        """
        if not prompts:
            return []
        began = time.perf_counter()
        batch = Batch(self, prompts, max_new_tokens, seeds or range(len(prompts)))
        results: dict[int, GenerationResult] = {}
        while batch.rows:
            batch.run_round()
            seconds = time.perf_counter() - began
            results |= {row.text.number: row.result(seconds) for row in batch.leave()}
        return [results[number] for number in range(len(prompts))]


@dataclass
class _Row:
    sequence: _Sequence
    text: BatchText  # shares `sequence.tokens`
    rounds: list[Round] = field(default_factory=list)

    def result(self, seconds: float) -> GenerationResult:
        sequence, rounds = self.sequence, tuple(self.rounds[1:])
        prompt = tuple(sequence.tokens[: sequence.prompt_length])
        return GenerationResult(prompt, sequence.response, sequence.finish_reason, rounds, seconds)


class Batch:
    """The texts that have not ended, and their caches; row i of both models is `rows[i]`."""

    def __init__(
        self, engine: BatchEngine, prompts: Sequence[Sequence[int]], max_new_tokens: int, seeds: Sequence[int]
    ) -> None:
        self.policy, self.sampling = engine.policy, engine.sampling
        self.target, self.draft = (RaggedModel(model, len(prompts)) for model in (engine.target, engine.draft))
        self.drafter = BatchDrafter(self.draft, engine.policy, engine.sampling, engine.eos_token_ids)
        self.rows: list[_Row] = []
        engine.policy.begin(len(prompts))
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            sequence = _Sequence.begin(prompt, max_new_tokens, self.target.context, engine.eos_token_ids)
            generator = torch.Generator(self.target.device).manual_seed(seed)
            view = FeatureView(prompt, self.sampling.temperature) if self.policy.needs == "features" else None
            self.rows.append(_Row(sequence, BatchText(number, sequence.tokens, generator, view)))

    def run_round(self) -> None:
        """Draft blocks, verify them in one forward, commit what holds. The first round is the prompts' own."""
        blocks = self.drafter.draft_blocks(
            [row.text for row in self.rows], [self._draft_limit(row) for row in self.rows]
        )
        keep = max(len(block.token_ids) for block in blocks) + 1
        logits = self.target.logits([row.text.tokens for row in self.rows], keep)  # [B, K + 1, V]
        flat = None if self.sampling.greedy else self.sampling.probs(logits.flatten(0, 1))
        probs = flat if flat is None else flat.view(logits.shape)
        verdicts = self._verify(blocks, logits, probs)
        rounds = [_commit(*commit) for commit in zip(self.rows, blocks, verdicts, strict=True)]
        if self.policy.needs == "features":
            self._tell_features(blocks, verdicts, rounds, probs)
        for i, (row, finished) in enumerate(zip(self.rows, rounds, strict=True)):
            row.rounds.append(finished)
            self.target.truncate(i, len(row.text.tokens) - 1)
            self.draft.truncate(i, finished.start + finished.num_accepted)
            if len(row.rounds) > 1:
                self.policy.observe(row.text.number, finished)

    def leave(self) -> list[_Row]:
        """Take out the texts that have ended."""
        ended = [row for row in self.rows if row.sequence.finish_reason]
        staying = [i for i, row in enumerate(self.rows) if not row.sequence.finish_reason]
        if ended and staying:
            self.target.keep(staying)
            self.draft.keep(staying)
        self.rows = [self.rows[i] for i in staying]
        return ended

    def rewind(self, length: int) -> None:
        """Cut every text back to `length` tokens, to time the same rounds again."""
        for i, row in enumerate(self.rows):
            del row.text.tokens[length:]
            row.text.behind.clear()
            row.text.view = row.text.view and FeatureView(row.text.tokens, self.sampling.temperature)
            row.sequence.finish_reason = ""
            self.target.truncate(i, length - 1)
            self.draft.truncate(i, length - 1)

    def _draft_limit(self, row: _Row) -> int:
        """As many drafts as the text has room for beside the extra token, and as both contexts hold; none at first."""
        if not row.rounds:
            return 0
        return min(row.sequence.end - 1, self.target.context, self.draft.context) - len(row.text.tokens)

    def _verify(self, blocks: Sequence[DraftBlock], logits: torch.Tensor, probs: torch.Tensor | None) -> list[Verdict]:
        if probs is None:
            choices = logits.argmax(-1).tolist()  # [B][K + 1]
            return [
                verify_greedy(_own(row, block), block.token_ids) for row, block in zip(choices, blocks, strict=True)
            ]
        verdicts = []
        for row, block, row_probs in zip(self.rows, blocks, probs, strict=True):
            target_probs = _own(row_probs, block)
            draft_probs = target_probs[:0] if block.probs is None else block.probs
            verdicts.append(verify(target_probs, draft_probs, block.token_ids, row.text.generator))
        return verdicts

    def _tell_features(
        self,
        blocks: Sequence[DraftBlock],
        verdicts: Sequence[Verdict],
        rounds: Sequence[Round],
        probs: torch.Tensor | None,
    ) -> None:
        """What the verification says of every committed token."""
        for i, (row, block, verdict, finished) in enumerate(zip(self.rows, blocks, verdicts, rounds, strict=True)):
            committed = finished.committed
            target_token_probs = [1.0] * len(committed)
            if probs is not None:
                target_token_probs = token_probs(_own(probs[i], block), committed)
            if probs is None or block.probs is None:
                agreements = _greedy_agreements(verdict, block.token_ids)[: len(committed)]
            else:
                agreements = _sampled_agreements(block.probs, committed, target_token_probs)
            row.text.commit(agreements, target_token_probs)


def _own(row: Any, block: DraftBlock) -> Any:
    """A text's own part of the K + 1 columns: the last of them, as many as its block has tokens and one."""
    return row[len(row) - len(block.token_ids) - 1 :]


def _commit(row: _Row, block: DraftBlock, verdict: Verdict) -> Round:
    """Take the block back from the text, and append what holds of it."""
    start = len(row.text.tokens) - len(block.token_ids)
    del row.text.tokens[start:]
    committed = row.sequence.commit([*block.token_ids[: verdict.num_accepted], verdict.token_id])
    return Round(start, block.token_ids, verdict.num_accepted, tuple(committed))


@torch.inference_mode()
def autoregressive_batch(
    target: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    eos_token_ids: Iterable[int] = (),
    seeds: Sequence[int] | None = None,
) -> list[GenerationResult]:
    """The target alone, one token of every text a forward."""
    began, sampling = time.perf_counter(), sampling or Sampling()
    eos, model = frozenset(eos_token_ids), RaggedModel(target, len(prompts))
    sequences = [_Sequence.begin(prompt, max_new_tokens, model.context, eos) for prompt in prompts]
    generators = [torch.Generator(model.device).manual_seed(seed) for seed in seeds or range(len(prompts))]
    results: dict[int, GenerationResult] = {}
    rows = list(range(len(prompts)))
    while rows:
        logits = model.logits([sequences[row].tokens for row in rows], keep=1)[:, -1]  # [B, V]
        if sampling.greedy:
            choices = logits.argmax(-1)
        else:
            pairs = zip(sampling.probs(logits), rows, strict=True)
            choices = torch.cat([draw(probs[None], generators[row]) for probs, row in pairs])
        for row, token_id in zip(rows, choices.tolist(), strict=True):
            sequence = sequences[row]
            sequence.commit([token_id])
            if sequence.finish_reason:
                seconds = time.perf_counter() - began
                prompt = tuple(prompts[row])
                results[row] = GenerationResult(prompt, sequence.response, sequence.finish_reason, (), seconds)
        staying = [i for i, row in enumerate(rows) if not sequences[row].finish_reason]
        if staying and len(staying) < len(rows):
            model.keep(staying)
        rows = [rows[i] for i in staying]
    return [results[row] for row in range(len(prompts))]
