"""Distil the draft: ``python -m dsl_train.reference.smollm2.distill --help`` names the folders.

Trains on what `answers.py` has gathered so far and on what it adds meanwhile, for a given time; the same command again
goes on from the last checkpoint. The loss of a place is the cross-entropy to the target's most likely tokens (Hinton et
al. 1503.02531) with a share for the first of them, which is what greedy decoding accepts.
Letters: N places, K labels, V tokens of the draft's head.
"""

import json
import logging
import math
import os
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dsl_train.reference.smollm2.texts import (
    Text,
    batches,
    is_held_out,
    padded,
    read_conversations,
    read_wave,
)

log = logging.getLogger(__name__)
#: Texts that are sorted by length and trained on before new files are looked for.
_CHUNK = 512
#: Tokens of the head that are no label of a batch and are summed over all the same.
RANDOM_OTHERS = 2048


@dataclass
class DistillRun:
    """Distil a small Llama from the target's answers."""

    target: Path
    """Folder of the target."""
    answers: Path
    """Folder of `answers.py`'s files."""
    work: Path
    """Folder of the training checkpoint."""
    output: Path
    """Folder that receives the draft."""
    conversations: Path | None = None
    """JSON lines of `prompt`, `response`, `greedy`: every other one is trained on, agreement measured on the others."""
    minutes: float = 80.0
    """Training time, earlier runs of the same `work` included."""
    decay_share: float = 0.35
    """Of the time, at the end, in which the learning rate falls to nothing."""
    batch_tokens: int = 6144
    """Padded tokens of a step."""
    hidden_size: int = 256
    """Width of the draft."""
    layers: int = 4
    """Layers of the draft."""
    head_tokens: int = 16384
    """The draft proposes only token ids below this; byte-pair merging has ordered them by frequency."""
    learning_rate: float = 3e-3
    """Peak, of AdamW for matrices."""
    embedding_rate: float = 1e-3
    """Peak, of AdamW for embeddings and norms."""
    first_share: float = 0.3
    """Share of the loss for the target's first choice."""
    threads: int = 1
    """Threads of torch."""
    checkpoint_minutes: float = 4.0
    """Time between checkpoints."""
    seed: int = 0
    """Of weights and order."""


class Distillation:
    """Owns the draft, its optimisers and how long it has been trained."""

    def __init__(self, run: DistillRun) -> None:
        self.run, self.minutes, self.steps, self.places = run, 0.0, 0, 0
        torch.manual_seed(run.seed)
        self.tokenizer = AutoTokenizer.from_pretrained(run.target)
        self.checkpoint = run.work / "draft.pt"
        self.draft = draft_of(run)
        matrices = [weight for weight in self.draft.model.layers.parameters() if weight.ndim == 2]
        others = [weight for weight in self.draft.parameters() if all(weight is not matrix for matrix in matrices)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(matrices, lr=run.learning_rate, weight_decay=0.05, betas=(0.9, 0.98)),
            torch.optim.AdamW(others, lr=run.embedding_rate, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.rates = [run.learning_rate, run.embedding_rate]
        self.seen: dict[tuple[str, int], int] = defaultdict(int)
        if self.checkpoint.exists():
            self._restore()

    def train(self) -> None:
        """Until the time is over; writes the draft after every checkpoint."""
        run, choice = self.run, random.Random(self.run.seed + self.steps)
        known: dict[tuple[str, int], Text] = {}
        conversations = read_conversations(run.conversations, self.tokenizer) if run.conversations else []
        known |= {("conversations", number): text for number, text in enumerate(conversations) if number % 2 == 0}
        held_out = conversations[1:240:2]
        saved = began = time.monotonic()
        before = self.minutes
        while self.minutes < run.minutes:
            self._look_for_texts(known, held_out)
            least = sorted(known, key=lambda name: (self.seen[name], choice.random()))[:_CHUNK]
            for name in least:
                self.seen[name] += 1
            chunk = list(batches([known[name] for name in least], run.batch_tokens))
            choice.shuffle(chunk)
            losses = []
            for batch in chunk:
                losses.append(self.step(batch))
                self.minutes = before + (time.monotonic() - began) / 60
            log.info(
                "%.1f min, %d steps, %d places, %d texts: loss %.3f",
                *(self.minutes, self.steps, self.places, len(known), sum(losses) / len(losses)),
            )
            if time.monotonic() - saved > 60 * run.checkpoint_minutes or self.minutes >= run.minutes:
                self._save()
                log.info(json.dumps({"minutes": round(self.minutes, 1), "agreement": self.agreement(held_out)}))
                publish(self.draft, run, self.tokenizer)
                saved = time.monotonic()

    def step(self, batch: Sequence[Text]) -> float:
        """One step; returns its loss [nats a place]."""
        left = (self.run.minutes - self.minutes) / (self.run.decay_share * self.run.minutes)
        factor = max(0.0, min(1.0, (self.steps + 1) / 40, left))
        ids, predicts = padded(batch)
        top_ids, probs = labels_of(batch)  # [N, K]
        hidden = self.draft.model(input_ids=ids, use_cache=False).last_hidden_state[predicts]
        loss = distillation_loss(
            hidden, self.draft.lm_head.weight[: self.run.head_tokens], top_ids, probs, self.run.first_share
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), 1.0)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.steps, self.places = self.steps + 1, self.places + len(top_ids)
        return loss.item()

    @torch.inference_mode()
    def agreement(self, texts: Sequence[Text]) -> dict[str, float]:
        """Share of the places of unseen greedy answers at which the draft's first choice is the target's, by kind."""
        right: dict[str, int] = defaultdict(int)
        places: dict[str, int] = defaultdict(int)
        for batch in batches([text for text in texts if text.greedy], self.run.batch_tokens):
            choices = self._logits(*padded(batch)).argmax(-1)
            answers = torch.tensor([token_id for text in batch for token_id in text.answer_ids])
            kinds = [text.kind for text in batch for _ in text.answer_ids]
            for kind, same in zip(kinds, (choices == answers).tolist(), strict=True):
                right[kind] += same
                places[kind] += 1
        return {kind: round(right[kind] / places[kind], 4) for kind in sorted(places)}

    def _logits(self, ids: torch.Tensor, predicts: torch.Tensor) -> torch.Tensor:
        hidden = self.draft.model(input_ids=ids, use_cache=False).last_hidden_state
        return functional.linear(hidden[predicts], self.draft.lm_head.weight[: self.run.head_tokens])

    def _look_for_texts(self, known: dict[tuple[str, int], Text], held_out: list[Text]) -> None:
        files = {name for name, _ in known}
        for path in sorted(self.run.answers.glob("wave-*.safetensors")):
            if path.name in files:
                continue
            for number, text in enumerate(read_wave(path)):
                if not is_held_out(number):
                    known[path.name, number] = text
                elif len(held_out) < 700:
                    held_out.append(text)

    def _save(self) -> None:
        self.run.work.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.draft.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": (self.minutes, self.steps, self.places),
            "seen": dict(self.seen),
        }
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        os.replace(self.checkpoint.with_suffix(".tmp"), self.checkpoint)

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.draft.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.minutes, self.steps, self.places = state["progress"]
        self.seen.update(state["seen"])


def labels_of(batch: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [N, K], most likely first, and their probabilities [N, K], 0 where a text has fewer labels."""
    width = max(text.top_ids.shape[1] for text in batch)
    ids = [functional.pad(text.top_ids.long(), (0, width - text.top_ids.shape[1])) for text in batch]
    probs = [functional.pad(text.top_log_probs.float().exp(), (0, width - text.top_ids.shape[1])) for text in batch]
    return torch.cat(ids), torch.cat(probs)


def distillation_loss(
    hidden: torch.Tensor,  # [N, hidden]
    head: torch.Tensor,  # [V, hidden]
    top_ids: torch.Tensor,  # [N, K], most likely first
    top_probs: torch.Tensor,  # [N, K]
    first_share: float,
) -> torch.Tensor:
    """Mean cross-entropy [nats]; labels that the draft's head does not have count for nothing.

    The sum over the head's tokens is that over all labels of the batch, and over a random part of the others, each
    counted as many times as it stands for (sampled softmax: Bengio and Senecal 2008).
    """
    num_tokens = len(head)
    probs = torch.where(top_ids < num_tokens, top_probs, 0.0)
    is_label = torch.zeros(num_tokens, dtype=torch.bool)
    is_label[top_ids[:, :8][probs[:, :8] > 0.0]] = True
    labels, others = is_label.nonzero()[:, 0], (~is_label).nonzero()[:, 0]
    drawn = others[torch.randperm(len(others))[:RANDOM_OTHERS]]
    columns = torch.cat([labels, drawn])
    place = torch.full((num_tokens,), -1).scatter(0, columns, torch.arange(len(columns)))
    stands_for = torch.zeros(len(columns))
    stands_for[len(labels) :] = math.log(max(1, len(others)) / max(1, len(drawn)))
    logits = functional.linear(hidden, head[columns])  # [N, columns]
    log_total = (logits + stands_for).logsumexp(-1, keepdim=True)
    at = place[top_ids.clamp_max(num_tokens - 1)]
    probs = torch.where(at < 0, 0.0, probs)
    log_probs = logits.gather(-1, at.clamp_min(0)) - log_total
    soft = -(probs * log_probs).sum(-1)
    first = torch.where(probs[:, 0] > 0.0, -log_probs[:, 0], 0.0)
    return ((1.0 - first_share) * soft + first_share * first).mean()


def draft_of(run: DistillRun) -> LlamaForCausalLM:
    """A narrow Llama whose embeddings are the target's on their principal axes."""
    target = LlamaForCausalLM.from_pretrained(run.target, dtype=torch.float32)
    config = LlamaConfig(
        vocab_size=target.config.vocab_size,
        hidden_size=run.hidden_size,
        intermediate_size=3 * run.hidden_size,
        num_hidden_layers=run.layers,
        num_attention_heads=run.hidden_size // 64,
        num_key_value_heads=max(1, run.hidden_size // 128),
        head_dim=64,
        max_position_embeddings=target.config.max_position_embeddings,
        rms_norm_eps=target.config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=target.config.bos_token_id,
        eos_token_id=target.config.eos_token_id,
        pad_token_id=target.config.pad_token_id,
        tie_word_embeddings=True,
    )
    config.draft_head_tokens = run.head_tokens
    draft = LlamaForCausalLM(config)
    weight = target.model.embed_tokens.weight.detach()
    _, axes = torch.linalg.eigh(weight.T @ weight)  # rising
    projected = weight @ axes[:, -run.hidden_size :]
    draft.model.embed_tokens.weight.data.copy_(0.7 * projected / projected.norm(dim=-1).mean())
    return draft


def publish(draft: LlamaForCausalLM, run: DistillRun, tokenizer: object) -> None:
    """Write the draft as a folder of float32 weights; `export.py` makes it small."""
    draft.save_pretrained(run.output)
    tokenizer.save_pretrained(run.output)  # type: ignore[attr-defined]


def main() -> None:
    from jsonargparse import CLI

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run = CLI(DistillRun, as_positional=False)
    torch.set_num_threads(run.threads)
    Distillation(run).train()


if __name__ == "__main__":
    main()
