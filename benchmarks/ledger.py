"""Where the time of a generation goes: every second belongs to the innermost of the functions that are watched.

The loop knows nothing of it: functions are wrapped from outside for as long as the ledger is open.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from dsl_train.api.speculator import Speculator
from dsl_train.base.sampling import Sampling
from dsl_train.features.vector import FeatureView
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel

PREFILL, DRAFT, VERIFY = "prefill", "draft forwards", "verify forwards"
FORWARDS = (PREFILL, DRAFT, VERIFY)
OTHERS = ("sampling", "features", "predictor", "host copies", "bookkeeping")

#: (account, owner, attribute): a module by name, or a class. What is nowhere here is bookkeeping.
_WATCHED: tuple[tuple[str, Any, str], ...] = (
    ("bookkeeping", SpeculativeEngine, "generate"),
    ("sampling", "dsl_train.loop.drafter", "draw"),
    ("sampling", "dsl_train.loop.drafter", "most_likely"),
    ("sampling", "dsl_train.loop.engine", "judge"),
    ("sampling", "dsl_train.loop.engine", "compare"),
    ("sampling", Sampling, "probs"),
    ("sampling", Sampling, "scale"),
    ("features", "dsl_train.runners.cached", "read_draft"),
    ("features", "dsl_train.loop.drafter", "read_draft"),
    ("features", "dsl_train.loop.drafter", "read_drawn"),
    *(("features", FeatureView, name) for name in ("__init__", "commit", "agree", "begin_block", "append", "vector")),
    ("predictor", Predictor, "survival"),
    ("host copies", torch.Tensor, "tolist"),
    ("host copies", torch.Tensor, "item"),
)


class Ledger:
    """Seconds and calls by account."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._inner: list[float] = []  # seconds spent in watched functions that the open ones called

    @contextmanager
    def watching(self, speculator: Speculator, closely: bool = True) -> Iterator[None]:
        """Wrap this pair's forwards and the loop; `closely`, its functions too, which watching makes slower."""
        with ExitStack() as stack:
            for account, owner, name in _WATCHED if closely else _WATCHED[:1]:
                wrapped = self._wrap(account, _attribute(owner, name))
                target = f"{owner}.{name}" if isinstance(owner, str) else None
                stack.enter_context(patch(target, wrapped) if target else patch.object(owner, name, wrapped))
            for runner, account in ((speculator.target, VERIFY), (speculator.draft, DRAFT)):
                stack.enter_context(patch.object(runner._decoder, "logits", self._forward(account, runner)))
            yield

    def __iadd__(self, other: "Ledger") -> "Ledger":
        self.seconds += other.seconds
        self.calls += other.calls
        return self

    @property
    def share_of_forwards(self) -> float:
        return sum(self.seconds[name] for name in FORWARDS) / self.seconds.total()

    def _wrap(self, account: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                self.seconds[account] += took - self._inner.pop()
                self.calls[account] += 1
                if self._inner:
                    self._inner[-1] += took

        return watched

    def _forward(self, account: str, runner: CachedModel) -> Callable[..., torch.Tensor]:
        """The first forward of a text is the prefill. On a GPU each one is waited for, or it would be billed later."""
        run = runner._decoder.logits

        def finished(token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:
            logits = run(token_ids, start, keep)
            if logits.device.type == "cuda":
                torch.cuda.synchronize(logits.device)
            return logits

        accounts = {True: self._wrap(PREFILL, finished), False: self._wrap(account, finished)}
        return lambda token_ids, start, keep: accounts[start == 0](token_ids, start, keep)


def _attribute(owner: Any, name: str) -> Callable[..., Any]:
    if isinstance(owner, str):
        owner = __import__(owner, fromlist=[name])
    found: Callable[..., Any] = getattr(owner, name)
    return found
