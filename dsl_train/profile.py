"""Measures what drafting and verifying cost here: one :class:`CostProfile` per pair, machine and setting.

Times the very code that serves: the drafter's blocks, the runner's forwards, the engine's rounds. Letters: K drafted
tokens of a round.
"""

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dsl_train import __version__, provenance
from dsl_train.cost import CostProfile
from dsl_train.drafter import Drafter
from dsl_train.engine import SpeculativeEngine
from dsl_train.loading import Pair
from dsl_train.policies.base import Policy
from dsl_train.policies.factory import make_policy
from dsl_train.predictor.runtime import Predictor
from dsl_train.records import Round
from dsl_train.runner import CachedModel
from dsl_train.sampling import Sampling

_log = logging.getLogger(__name__)
_TEXT_LENGTH = 128  # tokens of the text that everything is timed on, context permitting
_LOOKAHEAD = 8
_MIN_REPEATS = 3
_EMPTY_ROUNDS = 5  # a turn

Timed = int | str
"""What a timer measures: the tokens of a verification; `draft`, a draft token; `plain` and `asking`, one without its
forward, `asking` the predictor; `round`, an empty round without its forward."""


def cached_profile(
    pair: Pair, predictor: Predictor | None = None, sampling: Sampling | None = None, fresh: bool = False
) -> CostProfile:
    """The profile of this pair here: from the user's cache, or measured (1-2 s for small models) and cached.

    `fresh` measures anew. A cache that cannot be read or written costs a measurement and a warning in the log.
    """
    path = cache_file(pair, predictor is not None, sampling or Sampling())
    known = None if fresh else _read(path)
    if known is not None:
        return known
    profile = measure(CachedModel(pair.target), CachedModel(pair.draft), predictor, sampling)
    try:
        provenance.write_json(path, asdict(profile))
    except OSError as error:
        _log.warning("the cost profile cannot be cached in %s (%s); it will be measured again", path, error)
    return profile


def cache_file(pair: Pair, with_predictor: bool, sampling: Sampling) -> Path:
    """Where the profile is kept: named after all that its numbers depend on."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    models = [(identity.config_hash, identity.dtype) for identity in (pair.target_identity, pair.draft_identity)]
    setting = (with_predictor, sampling.greedy, sampling.top_k, sampling.top_p)
    versions = (__version__, torch.__version__)
    depends_on = (models, _device_name(pair.target.device), torch.get_num_threads(), setting, versions)
    key = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:16]
    return Path(root) / "dsl_train" / "profiles" / f"{key}.json"


@torch.inference_mode()
def measure(
    target: CachedModel,
    draft: CachedModel,
    predictor: Predictor | None = None,
    sampling: Sampling | None = None,
    repeats: int = 20,
    max_seconds: float = 1.5,
) -> CostProfile:
    """Medians over interleaved timings of draft blocks, verifications of 1 ... K + 1 tokens and empty rounds.

    At most `repeats`, at least three, fewer than that only where `max_seconds` are over. Resets both models. Without a
    predictor its price is 0.
    """
    sampling = sampling or Sampling()
    context = min(target.context, draft.context)
    lookahead = min(_LOOKAHEAD, max(1, context // 4))
    text = _random_text(target, min(_TEXT_LENGTH, context // 2))
    plain = asking = make_policy(f"static:{lookahead}")
    never = make_policy("static:0")
    if predictor is not None:
        asking, never = (make_policy("learned", predictor, threshold) for threshold in (-1.0, 2.0))
    silent_target, silent_draft = _Recorded(target, text), _Recorded(draft, text)
    engine = SpeculativeEngine(silent_target, silent_draft, never, sampling)
    target.reset()
    timers: dict[Timed, Callable[[], float]] = {
        "draft": _draft_timer(draft, plain, sampling, text, lookahead),
        "plain": _draft_timer(silent_draft, plain, sampling, text, lookahead),
        "asking": _draft_timer(silent_draft, asking, sampling, text, lookahead),
        "round": partial(_time_empty_round, engine, text),
        **{width: partial(_time_verification, target, text, width) for width in range(1, lookahead + 2)},
    }
    step = {name: median(seconds) for name, seconds in _interleave(timers, repeats, max_seconds).items()}
    return CostProfile(
        draft_step=step["draft"],
        target_step=step[1],
        target_step_per_token=_slope([step[width] for width in range(1, lookahead + 2)]),
        predictor=max(0.0, step["asking"] - step["plain"]) if predictor else 0.0,
        round_overhead=step["round"],
    )


class _Recorded(CachedModel):
    """Gives the same logits at once: what remains is the price of everything around a forward."""

    def __init__(self, recorded: CachedModel, text: list[int]) -> None:
        super().__init__(recorded.model)
        recorded.reset()
        self._row = recorded.logits(text, keep=1)  # [1, V]

    def logits(self, token_ids: Sequence[int], keep: int) -> torch.Tensor:
        assert keep == 1, f"recorded is one row, asked for are {keep}"
        return self._row


def _interleave(
    timers: Mapping[Timed, Callable[[], float]], repeats: int, max_seconds: float
) -> dict[Timed, list[float]]:
    """Seconds by timer, all in turn so that a disturbance hits them alike; one untimed turn first."""
    for timer in timers.values():
        timer()
    seconds: dict[Timed, list[float]] = {name: [] for name in timers}
    began = time.perf_counter()
    for repeat in range(repeats):
        if repeat >= _MIN_REPEATS and time.perf_counter() - began > max_seconds:
            break
        for name, timer in timers.items():
            seconds[name].append(timer())
    return seconds


def _draft_timer(
    draft: CachedModel, policy: Policy, sampling: Sampling, text: list[int], lookahead: int
) -> Callable[[], float]:
    """A function that drafts a block after `text` and returns the seconds per token."""
    drafter = Drafter(draft, policy, sampling, frozenset(), text)
    generator = torch.Generator(draft.device).manual_seed(0)

    def seconds_per_token() -> float:
        began = time.perf_counter()
        block = drafter.draft_block(text, lookahead, generator)
        seconds = time.perf_counter() - began
        draft.truncate(len(text) - 1)
        return seconds / len(block.token_ids)

    return seconds_per_token


def _time_verification(target: CachedModel, text: list[int], width: int) -> float:
    """Seconds of a forward over `width` new tokens, until its choices are on the host."""
    target.truncate(len(text) - 1)
    began = time.perf_counter()
    target.logits([*text, *text[: width - 1]], keep=width).argmax(-1).tolist()
    return time.perf_counter() - began


def _time_empty_round(engine: SpeculativeEngine, text: list[int]) -> float:
    """Seconds of a whole round that drafts nothing, the question before the first draft included."""
    stamps: list[float] = []

    def stamp(_: Round) -> None:
        stamps.append(time.perf_counter())

    engine.generate(text, max_new_tokens=_EMPTY_ROUNDS + 1, on_round=stamp)
    return median(end - start for start, end in pairwise(stamps))


def _slope(step: Sequence[float]) -> float:
    """Seconds per token beyond the first: least squares through the measured single-token step."""
    squares = sum(extra * extra for extra in range(len(step)))
    return max(0.0, sum(extra * (seconds - step[0]) for extra, seconds in enumerate(step)) / squares)


def _random_text(model: CachedModel, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.model.config.get_text_config().vocab_size
    tokens: list[int] = torch.randint(vocab_size, (max(2, length),), generator=generator).tolist()
    return tokens


def _read(path: Path) -> CostProfile | None:
    if not path.exists():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        return CostProfile(**{field.name: float(values[field.name]) for field in fields(CostProfile)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("the cached cost profile %s cannot be read (%r); measuring again", path, error)
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        models = []
    return f"{device.type} {models[0] if models else platform.processor() or platform.machine()}"
