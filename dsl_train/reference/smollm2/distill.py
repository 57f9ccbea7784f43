"""Distil the draft: ``python -m dsl_train.reference.smollm2.distill --help`` names the folders.

The target reads every batch of its answers again, and the loss of a place is the cross-entropy to its distribution
(Hinton et al. 1503.02531) with a share for its first choice, which is what greedy decoding accepts. The same command
again goes on from the last checkpoint. Letters: N places, V tokens of the draft's head.
"""

import json
import logging
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dsl_train.reference.smollm2.texts import Text, batches, padded, read_waves

log = logging.getLogger(__name__)
#: Texts that are sorted by length and trained on together.
_CHUNK = 4096


@dataclass
class DistillRun:
    """Distil a small Llama from the target's answers."""

    target: Path
    """Folder of the target."""
    answers: Path
    """Folder of `answers.py`'s files."""
    held_out: Path
    """Folder of answers gathered with another seed: agreement is measured there, on those to prompts not trained on."""
    work: Path
    """Folder of the training checkpoint."""
    output: Path
    """Folder that receives the draft."""
    minutes: float = 240.0
    """Training time, earlier runs of the same `work` included."""
    decay_share: float = 0.6
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
    """Peak, of matrices."""
    embedding_rate: float = 1e-3
    """Peak, of AdamW for embeddings and norms."""
    muon: bool = False
    """Matrices by Muon (Jordan et al. 2024) instead of AdamW; slow on processors without bfloat16."""
    first_share: float = 0.3
    """Share of the loss for the target's first choice."""
    device: str = "cpu"
    """cpu or cuda; there both models compute in bfloat16."""
    checkpoint_minutes: float = 4.0
    """Time between checkpoints."""
    seed: int = 0
    """Of weights and order."""


class Distillation:
    """Owns both models, the optimisers and how long the draft has been trained."""

    def __init__(self, run: DistillRun) -> None:
        self.run, self.minutes, self.steps, self.places = run, 0.0, 0, 0
        torch.manual_seed(run.seed)
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape
        self.tokenizer = AutoTokenizer.from_pretrained(run.target)
        self.checkpoint = run.work / "draft.pt"
        target = LlamaForCausalLM.from_pretrained(run.target, dtype=torch.float32)
        self.draft = draft_of(target, run)
        self.draft.to(run.device)  # type: ignore[arg-type]  # transformers wraps it
        self.low = torch.autocast(run.device, torch.bfloat16, enabled=run.device != "cpu")
        self.target = target.eval()
        self.target.to(run.device, torch.float32 if run.device == "cpu" else torch.bfloat16)  # type: ignore[arg-type]
        matrices = [weight for weight in self.draft.model.layers.parameters() if weight.ndim == 2]
        others = [weight for weight in self.draft.parameters() if all(weight is not matrix for matrix in matrices)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=run.learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
            if run.muon
            else torch.optim.AdamW(matrices, lr=run.learning_rate, weight_decay=0.05, betas=(0.9, 0.98)),
            torch.optim.AdamW(others, lr=run.embedding_rate, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.rates = [run.learning_rate, run.embedding_rate]
        if self.checkpoint.exists():
            self._restore()

    def train(self) -> None:
        """Until the time is over; writes the draft after every checkpoint."""
        run = self.run
        texts = read_waves(run.answers)
        trained = {text.prompt_ids for text in texts}
        held_out = [text for text in read_waves(run.held_out) if text.prompt_ids not in trained]
        log.info("%d texts, %d places; %d held out", len(texts), sum(map(_places, texts)), len(held_out))
        saved = began = time.monotonic()
        before, losses = self.minutes, []
        for batch in self._endless(texts):
            losses.append(self.step(batch))
            self.minutes = before + (time.monotonic() - began) / 60
            over = self.minutes >= run.minutes
            if over or time.monotonic() - saved > 60 * run.checkpoint_minutes:
                loss, losses = torch.stack(losses).mean().item(), []
                said = {"minutes": round(self.minutes, 2), "steps": self.steps, "places": self.places, "loss": loss}
                log.info(json.dumps({**said, **self.agreement(held_out)}))
                self._save()
                saved = time.monotonic()
            if over:
                break
        self.draft.save_pretrained(run.output)
        self.tokenizer.save_pretrained(run.output)

    def _endless(self, texts: Sequence[Text]) -> Iterator[list[Text]]:
        """Batches of texts of similar length, every text once before any comes again."""
        choice = random.Random(self.run.seed + self.steps)
        while True:
            order = choice.sample(list(texts), len(texts))
            for first in range(0, len(order), _CHUNK):
                chunk = list(batches(order[first : first + _CHUNK], self.run.batch_tokens))
                yield from choice.sample(chunk, len(chunk))

    def step(self, batch: Sequence[Text]) -> torch.Tensor:
        """One step; returns its loss [nats a place]."""
        left = (self.run.minutes - self.minutes) / (self.run.decay_share * self.run.minutes)
        factor = max(0.0, min(1.0, (self.steps + 1) / 100, left))
        ids, predicts = (tensor.to(self.run.device) for tensor in padded(batch))
        with torch.no_grad():
            probs = self._logits(self.target, ids, predicts).float().softmax(-1)  # [N, V]
        with self.low:
            logits = self._logits(self.draft, ids, predicts)
        loss = distillation_loss(logits.float(), probs, self.run.first_share)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), 1.0)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.steps, self.places = self.steps + 1, self.places + len(probs)
        return loss.detach()

    @torch.inference_mode()
    def agreement(self, texts: Sequence[Text]) -> dict[str, float]:
        """Share of the places of greedy answers at which the draft's first choice is the target's, by kind."""
        right: dict[str, int] = defaultdict(int)
        places: dict[str, int] = defaultdict(int)
        for batch in batches([text for text in texts if not text.temperature], self.run.batch_tokens):
            ids, predicts = (tensor.to(self.run.device) for tensor in padded(batch))
            with self.low:
                choices = self._logits(self.draft, ids, predicts).argmax(-1).cpu()
            answers = torch.tensor([token_id for text in batch for token_id in text.answer_ids])
            kinds = [text.kind for text in batch for _ in text.answer_ids]
            for kind, same in zip(kinds, (choices == answers).tolist(), strict=True):
                right[kind] += same
                places[kind] += 1
        return {kind: round(right[kind] / places[kind], 4) for kind in sorted(places)}

    def _logits(self, model: LlamaForCausalLM, ids: torch.Tensor, predicts: torch.Tensor) -> torch.Tensor:
        """Over the draft's head [N, V] at the places that predict."""
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[predicts]
        return functional.linear(hidden, model.lm_head.weight[: self.run.head_tokens])

    def _save(self) -> None:
        self.run.work.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.draft.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": (self.minutes, self.steps, self.places),
        }
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        os.replace(self.checkpoint.with_suffix(".tmp"), self.checkpoint)

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.draft.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.minutes, self.steps, self.places = state["progress"]


def distillation_loss(logits: torch.Tensor, target_probs: torch.Tensor, first_share: float) -> torch.Tensor:
    """Mean cross-entropy [nats] of a draft's logits [N, V] to the target's probabilities [N, V] over the same tokens,
    of which `first_share` goes to the most likely one. Overwrites the probabilities."""
    first = target_probs.argmax(-1, keepdim=True)
    wanted = target_probs.mul_(1.0 - first_share)
    wanted.scatter_add_(-1, first, torch.full_like(first, first_share, dtype=wanted.dtype))
    return functional.cross_entropy(logits, wanted)


def draft_of(target: LlamaForCausalLM, run: DistillRun) -> LlamaForCausalLM:
    """A narrow Llama whose embeddings are the target's on their principal axes."""
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


def _places(text: Text) -> int:
    return len(text.answer_ids)


def main() -> None:
    from jsonargparse import CLI

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    Distillation(CLI(DistillRun, as_positional=False)).train()


if __name__ == "__main__":
    main()
