"""What drafting and verifying cost here: one :class:`CostProfile` per pair, machine and setting, measured once.

Knows where it is kept; `timing.py` measures.
"""

import hashlib
import json
import logging
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dsl_train import provenance
from dsl_train.compiled import graphs_of
from dsl_train.cost import CostProfile
from dsl_train.inputs import typical_runners
from dsl_train.loading import Pair
from dsl_train.predictor.runtime import Predictor
from dsl_train.sampling import Sampling
from dsl_train.timing import measure

_log = logging.getLogger(__name__)
#: Of the cached file; another format is measured again.
FORMAT_VERSION = 2


def cached_profile(
    pair: Pair, predictor: Predictor | None = None, sampling: Sampling | None = None, fresh: bool = False
) -> CostProfile:
    """The profile of this pair here: from the user's cache, or measured (3 s for small models) and cached.

    `fresh` measures anew. A cache that cannot be read or written costs a measurement and a warning in the log.
    """
    path = cache_file(pair, predictor is not None, sampling or Sampling())
    known = None if fresh else _read(path)
    if known is not None:
        return known
    profile = measure(*typical_runners(pair), predictor, sampling)
    setting = _setting(pair, predictor is not None, sampling or Sampling())
    try:
        provenance.write_json(path, {"format_version": FORMAT_VERSION, "setting": setting, "cost": asdict(profile)})
    except OSError as error:
        _log.warning("the cost profile cannot be cached in %s (%s); it will be measured again", path, error)
    return profile


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
        "versions": {"dsl-train": provenance.__version__, "torch": torch.__version__},
    }


def _read(path: Path) -> CostProfile | None:
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {content['format_version']}, this build writes {FORMAT_VERSION}")
        return CostProfile.from_dict(content["cost"])
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
