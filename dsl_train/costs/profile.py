"""What drafting and verifying cost here: one :class:`CostProfile` per pair, machine and setting, measured once.

A profile taken on a busy machine would slow all later runs, so it is kept with what tells: whether the measurement had
to wait for other work, and how quick one target step was. It is read only while both look right; else measured again.
Knows where it is kept; `timing.py` measures.
"""

import hashlib
import json
import logging
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dsl_train.base import files
from dsl_train.base.cost import CostProfile
from dsl_train.base.sampling import Sampling
from dsl_train.costs.timing import measure
from dsl_train.pair.loading import Pair
from dsl_train.pair.prompt import typical_runners
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.compiled import graphs_of

_log = logging.getLogger(__name__)
#: Of the cached file; another format is measured again.
FORMAT_VERSION = 5
#: Quartiles of one step this far apart, or a step this much slower or quicker than when it was measured: disturbed.
MAX_RATIO = 1.3
#: Least processor time per second of a measurement that nothing else disturbed.
MIN_SHARE = 0.9
ATTEMPTS = 3
_STEPS, _TEXT_LENGTH = 8, 128


def cached_profile(
    pair: Pair, predictor: Predictor | None = None, sampling: Sampling | None = None, fresh: bool = False
) -> CostProfile:
    """The profile of this pair here: from the user's cache, or measured (3 s for small models) and cached.

    `fresh` measures anew. So does a cached one that cannot be trusted, with a warning in the log that says why; a cache
    that cannot be read or written costs a measurement and a warning.
    """
    path = cache_file(pair, predictor is not None, sampling or Sampling())
    known = None if fresh else _read(path)
    if known is not None:
        cost, doubt = known[0], _doubt(pair, *known[1:])
        if doubt is None:
            return cost
        _log.warning("the cached cost profile %s is measured again: %s", path, doubt)
    cost, disturbed = _measured(pair, predictor, sampling)
    if disturbed:
        _log.warning("the cost profile was measured on a busy machine (%s); the next run measures it again", disturbed)
    setting = _setting(pair, predictor is not None, sampling or Sampling())
    evidence = {"disturbed": disturbed, "step": _quickest_step(pair)}
    content = {"format_version": FORMAT_VERSION, "setting": setting, **evidence, "cost": asdict(cost)}
    try:
        files.write_json(path, content)
    except OSError as error:
        _log.warning("the cost profile cannot be cached in %s (%s); it will be measured again", path, error)
    return cost


def _measured(pair: Pair, predictor: Predictor | None, sampling: Sampling | None) -> tuple[CostProfile, str]:
    """The first that nothing disturbed, or the last of ATTEMPTS and what disturbed it."""
    for _ in range(ATTEMPTS):
        began = _clocks()
        cost = measure(*typical_runners(pair), predictor, sampling)
        disturbed = _disturbance(cost, *(now - then for now, then in zip(_clocks(), began, strict=True)))
        if not disturbed:
            break
    return cost, disturbed


def _doubt(pair: Pair, disturbed: str, step: float) -> str | None:
    """Why a cached profile is not to be trusted: it was `disturbed`, or a target step does not take `step` seconds."""
    if disturbed:
        return f"it was taken on a busy machine ({disturbed})"
    now = _quickest_step(pair)
    if 1.0 / MAX_RATIO <= now / step <= MAX_RATIO:
        return None
    return f"a target step took {1e3 * step:.2f} ms when it was taken and takes {1e3 * now:.2f} ms now"


def _disturbance(cost: CostProfile, wall: float, processor: float) -> str:
    """What shows that other work ran during a measurement of so many seconds; empty if nothing does."""
    if processor < MIN_SHARE * wall:
        return f"{processor:.1f} s of processor time in {wall:.1f} s"
    for name in ("target", "draft"):
        low, high = cost.spread.get(name, (1.0, 1.0))
        if high > MAX_RATIO * low:
            return f"half of the {name} steps took less than {1e3 * low:.2f} or more than {1e3 * high:.2f} ms"
    return ""


def _clocks() -> tuple[float, float]:
    """[seconds] wall and processor time, of all threads: at least one is at work while nothing else disturbs."""
    return time.perf_counter(), time.process_time()


@torch.inference_mode()
def _quickest_step(pair: Pair) -> float:
    """Seconds of a target step, the quickest of a few, so that a moment's other work does not count."""
    target, _ = typical_runners(pair)
    tokens = [0] * min(_TEXT_LENGTH, max(2, target.context // 2))
    target.reset()
    target.logits(tokens, keep=1)
    seconds = []
    for _ in range(_STEPS):
        target.truncate(len(tokens) - 1)
        began = time.perf_counter()
        target.logits(tokens, keep=1).argmax(-1).tolist()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def cache_file(pair: Pair, with_predictor: bool, sampling: Sampling) -> Path:
    """Where the profile is kept: named after all that its numbers depend on."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    depends_on = json.dumps([FORMAT_VERSION, _setting(pair, with_predictor, sampling)], sort_keys=True)
    return Path(root) / "dsl_train" / "profiles" / f"{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}.json"


def _setting(pair: Pair, with_predictor: bool, sampling: Sampling) -> dict[str, Any]:
    """All that the numbers depend on."""
    models = {"target": pair.target_identity, "draft": pair.draft_identity}
    return {
        **{role: {"config_hash": model.config_hash, "dtype": model.dtype} for role, model in models.items()},
        "device": _device_name(pair.target.device),
        "num_threads": torch.get_num_threads(),
        "compiled": [graphs_of(model) is not None for model in (pair.target, pair.draft)],
        "with_predictor": with_predictor,
        "sampling": [sampling.greedy, sampling.top_k, sampling.top_p],
        "versions": {"dsl-train": files.__version__, "torch": torch.__version__},
    }


def _read(path: Path) -> tuple[CostProfile, str, float] | None:
    """The profile, what disturbed it, seconds of a target step then."""
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {content['format_version']}, this build writes {FORMAT_VERSION}")
        return CostProfile.from_dict(content["cost"]), str(content["disturbed"]), float(content["step"])
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
