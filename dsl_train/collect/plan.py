"""What a command means before anything is collected: whose models, which texts, in which parts, where to.

Loads tokenizers and configurations, no weights: a folder of another collection is refused in seconds.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dsl_train.base import schema
from dsl_train.base.records import DslError
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.server import Server
from dsl_train.collect.split import Shard, local_device, shard_of
from dsl_train.collect.tasks import Inputs, Task, read_inputs
from dsl_train.pair.identity import ModelIdentity
from dsl_train.pair.loading import (
    DTYPES,
    identify,
    kind_named,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
    share_tokenizer,
)


@dataclass(frozen=True)
class Plan:
    """One shard of a collection; all of it, if it is not split."""

    config: CollectConfig
    """With precision and device as they will be."""
    shard: Shard
    target: dict[str, Any]
    """As `identity.ModelIdentity` describes it; of a target that is not loaded, what is known of it."""
    draft: ModelIdentity
    inputs: Inputs
    tokenizer: str | None = None
    """Whose tokens are recorded, if they are the draft's own, or there is no target to ask."""

    @property
    def folder(self) -> Path:
        return self.shard.folder(Path(self.config.output))

    @property
    def parts(self) -> dict[int, tuple[Task, ...]]:
        """Part number -> its tasks."""
        tasks, size = self.inputs.tasks, self.config.part_size
        return {part: tasks[first : first + size] for part, first in enumerate(range(0, len(tasks), size))}

    def describe(self) -> dict[str, Any]:
        """What is collected: all that decides which rows come out."""
        return {
            "config": asdict(self.config),
            "device": self.config.device.partition(":")[0],
            "pair": {
                **{"target": self.target, "draft": self.draft.to_dict()},
                **({"tokenizer": self.tokenizer} if self.tokenizer else {}),
            },
            "prompts": {"number": len(self.inputs.tasks), "hash": self.inputs.hash},
            "shard": asdict(self.shard),
            "schema": {"version": schema.BLOCK_TRACE_VERSION if self.config.by_block else schema.TRACE_VERSION},
        }


def make_plan(config: CollectConfig) -> Plan:
    """Raises DslError for models, inputs or a device that cannot be used."""
    shard, device = shard_of(config.num_shards, config.shard_index), _device(config)
    dtype = resolve_dtype(config.dtype, device)
    draft = identify(config.draft, "draft", DTYPES[dtype])
    if config.target is None:
        target, vocab_size, kind = _untold(config), draft.vocab_size, kind_named(config.draft)
        if kind != "decoder-only":
            raise DslError(
                f"draft {config.draft} is of kind {kind}, and only decoders are labelled without their target"
            )
    else:
        identity = identify(config.target, "target", DTYPES[dtype], config.quantization)
        target, vocab_size, kind = identity.to_dict(), identity.vocab_size, kind_named(config.target)
    inputs = read_inputs(config, load_tokenizer(config.target or config.draft), vocab_size, shard, kind)
    tokenizer = None if config.target and share_tokenizer(config.target, config.draft) else config.draft
    if config.target and tokenizer and not (config.method == "hindsight" and config.sampling.greedy):
        raise DslError(
            f"target {config.target} and draft {config.draft} have different tokenizers: such a pair is collected by "
            f"method hindsight at temperature 0, not by {config.method} at {config.temperature}; leave both out"
        )
    if config.draft_temperature == "auto" and shard.number > 1:
        raise DslError(
            f"draft_temperature is auto in a collection of {shard.number} shards, each of which would find another; "
            "collect a few prompts without shards first, and give the number that its manifest.json names"
        )
    return Plan(replace(config, dtype=dtype, device=str(device)), shard, target, draft, inputs, tokenizer)


def _untold(config: CollectConfig) -> dict[str, Any]:
    """All that is known of a target that answers elsewhere, or answered before. Raises DslError if its server does not
    say who it is."""
    if config.server is None:
        return {"id": f"the target of {config.responses}"}
    model = Server(config.server, config.server_model).model
    return {"id": model, "served_as": model}


def _device(config: CollectConfig) -> torch.device:
    if config.executor == "local":
        return resolve_device(local_device(config.device))
    by_actor = "cuda" if config.gpus_per_actor else "cpu"  # this process's own device is another matter
    return torch.device(by_actor if config.device == "auto" else config.device)
