"""Train the reference pair: ``python -m dsl_train.reference.train --output DIR``.

Tokenizer, then target (cross-entropy), then draft (KL to the target's distribution), then bfloat16 safetensors with
a model card each. Every stage resumes from its last checkpoint when the same command is run again.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from dsl_train.reference import cards, pair
from dsl_train.reference.corpus import SOURCE_WEIGHTS, training_files
from dsl_train.reference.text import TokenStreams, train_tokenizer

LossFunction = Callable[[torch.Tensor], torch.Tensor]  # [B, T] token ids -> scalar
MakeModel = Callable[[str], LlamaForCausalLM]  # device -> random weights
log = logging.getLogger(__name__)


@dataclass
class ReferenceRun:
    """Train the small reference pair on Python source found on this machine."""

    output: Path = Path("checkpoints/reference")
    """Folder that receives `target/` and `draft/`."""
    work: Path = Path("build/reference")
    """Folder for token streams and training checkpoints."""
    target_steps: int = 2400
    """Optimiser steps of the target."""
    draft_steps: int = 900
    """Optimiser steps of the draft."""
    batch_tokens: int = 8192
    """Tokens per step."""
    length: int = 256
    """Tokens per sequence in the first 80 % of the steps."""
    target_long_length: int = 1024
    """Tokens per sequence in the last 20 %, so that positions beyond `length` are trained too."""
    draft_long_length: int = 512
    """The same for the draft."""
    learning_rate: float = 5e-3
    """Peak learning rate, of Muon for matrices (update RMS matched to AdamW) and AdamW for the rest."""
    checkpoint_minutes: float = 3.0
    """Time between checkpoints."""
    seed: int = 0
    """Seed of initialisation and batches."""
    compile: bool = True
    """Use torch.compile (needs a C++ compiler on CPU)."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device to train on."""


def train_pair(
    run: ReferenceRun, make_target: MakeModel = pair.target_model, make_draft: MakeModel = pair.draft_model
) -> None:
    run.work.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(run)
    streams = TokenStreams.build(tokenizer, run.work)

    torch.manual_seed(run.seed)
    target = make_target(run.device)
    _fit("target", target, run.target_steps, run, streams, lambda ids: _cross_entropy(target, ids))

    target.requires_grad_(False)
    draft = make_draft(run.device)
    _fit("draft", draft, run.draft_steps, run, streams, lambda ids: _distillation(draft, target, ids))
    _publish(run, tokenizer, streams, target, draft)


def _tokenizer(run: ReferenceRun) -> PreTrainedTokenizerBase:
    folder = run.work / "tokenizer"
    if not folder.exists():
        log.info("training the tokenizer")
        texts = (text for source in SOURCE_WEIGHTS for text in list(training_files(source))[::3])
        train_tokenizer(texts, pair.VOCAB_SIZE).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def _fit(
    name: str, model: LlamaForCausalLM, steps: int, run: ReferenceRun, streams: TokenStreams, loss: LossFunction
) -> None:
    """Train ``model`` in place for ``steps``, from its last checkpoint if there is one."""
    long_length = run.target_long_length if name == "target" else run.draft_long_length
    optimizers = _optimizers(model, run.learning_rate)
    checkpoint = run.work / f"{name}.pt"
    first = _restore(checkpoint, model, optimizers, run.device)
    loss = torch.compile(loss, dynamic=False) if run.compile else loss
    saved, progress = time.monotonic(), tqdm(range(first, steps), initial=first, total=steps, desc=name, unit="step")
    for step in progress:
        length = run.length if step < 0.8 * steps else long_length
        ids = streams.batch(step, run.batch_tokens // length, length, run.seed).to(run.device)
        with torch.autocast(run.device, torch.bfloat16):
            value = loss(ids)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = run.learning_rate * _schedule(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        progress.set_postfix(loss=f"{value.item():.3f}", refresh=False)
        if step + 1 == steps or time.monotonic() - saved > 60 * run.checkpoint_minutes:
            metrics = {"step": step + 1, "loss": value.item(), "validation_loss": validation_loss(model, streams, run)}
            tqdm.write(json.dumps({"model": name, **metrics}), file=sys.stderr)
            _save(checkpoint, model, optimizers, step + 1)
            saved = time.monotonic()


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over 2 % of the run, constant, linear decay to 0 over the last 45 %."""
    return min((step + 1) / (0.02 * steps), 1.0, (steps - step) / (0.45 * steps))


def _optimizers(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if all(weight is not matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def _hidden_logits(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:  # [B * (T - 1), V]
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden[:, :-1]).flatten(0, 1).float()


def _cross_entropy(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(_hidden_logits(model, ids), ids[:, 1:].flatten())


def _distillation(draft: LlamaForCausalLM, target: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """KL(target || draft) in nats per token (Hinton et al. 1503.02531, at temperature 1)."""
    with torch.no_grad():
        target_log_probs = _hidden_logits(target, ids).log_softmax(-1)
    draft_log_probs = _hidden_logits(draft, ids).log_softmax(-1)
    return (target_log_probs.exp() * (target_log_probs - draft_log_probs)).sum(-1).mean()


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, streams: TokenStreams, run: ReferenceRun) -> float:
    """Mean cross-entropy [nats per token] on 64 windows of 512 tokens of the held-out test modules."""
    windows = streams.validation(batch_size=8, length=512, num_batches=8)
    with torch.autocast(run.device, torch.bfloat16):
        return sum(_cross_entropy(model, ids.to(run.device)).item() for ids in windows) / len(windows)


@torch.no_grad()
def agreement(draft: LlamaForCausalLM, target: LlamaForCausalLM, streams: TokenStreams, run: ReferenceRun) -> float:
    """Share of held-out positions at which both models' most likely tokens are the same."""
    windows = [ids.to(run.device) for ids in streams.validation(batch_size=8, length=512, num_batches=8)]
    same = [_hidden_logits(draft, ids).argmax(-1) == _hidden_logits(target, ids).argmax(-1) for ids in windows]
    return torch.cat(same).float().mean().item()


def _save(path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def _restore(path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], device: str) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def _publish(
    run: ReferenceRun,
    tokenizer: PreTrainedTokenizerBase,
    streams: TokenStreams,
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
) -> None:
    facts = {
        "target_loss": validation_loss(target, streams, run),
        "draft_loss": validation_loss(draft, streams, run),
        "agreement": agreement(draft, target, streams, run),
        "tokens": {name: len(stream) for name, stream in streams.streams.items()},
        **{key: value for key, value in asdict(run).items() if key not in ("output", "work", "device")},
    }
    for role, model in (("target", target), ("draft", draft)):
        folder = run.output / role
        model.bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(cards.model_card(role, model.num_parameters(), facts), "utf-8")
    log.info("wrote %s: %s", run.output, json.dumps(facts))


def main() -> None:
    from jsonargparse import CLI

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train_pair(CLI(ReferenceRun, as_positional=False))


if __name__ == "__main__":
    main()
