"""From logits to the distribution that tokens are drawn from. Pure: explicit generator, no model.

Letters: T positions, V vocabulary. Target and draft pass through the same processing; greedy is the one-hot
distribution, so one acceptance rule covers both.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class Sampling:
    """Temperature, top-k, top-p, in transformers' order and meaning. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0
    """0 keeps every token."""
    top_p: float = 1.0
    draft_temperature: float | None = None
    """At which the draft draws, as good as any other for the law of the text; 0: it proposes its most likely token. By
    default the temperature."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or positive, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or positive, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if self.draft_temperature is not None and self.draft_temperature < 0:
            raise ValueError(f"draft_temperature must be 0 (greedy) or positive, not {self.draft_temperature}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def truncates(self) -> bool:
        """Whether top-k or top-p leaves out tokens."""
        return self.top_k > 0 or self.top_p < 1

    @property
    def of_draft(self) -> "Sampling":
        """What the draft draws with."""
        if self.greedy or self.draft_temperature is None:
            return self
        return replace(self, temperature=self.draft_temperature, draft_temperature=None)

    def scale(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits at temperature (1 when greedy), before top-k and top-p: what features read."""
        return logits if self.greedy else logits.float() / self.temperature

    def probs(self, logits: torch.Tensor) -> torch.Tensor:  # [T, V] -> [T, V] float32, rows sum to 1
        return self.probs_of_scaled(self.scale(logits))

    def probs_of_scaled(self, scores: torch.Tensor) -> torch.Tensor:  # [T, V] -> [T, V] float32, rows sum to 1
        """`probs` from logits that :meth:`scale` has scaled."""
        if self.greedy:
            return torch.zeros_like(scores, dtype=torch.float32).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)
        if self.top_k:
            scores = TopKLogitsWarper(self.top_k)(None, scores)
        if self.top_p < 1:
            scores = TopPLogitsWarper(self.top_p)(None, scores)
        return scores.softmax(-1)


def most_likely(logits: torch.Tensor) -> list[int]:
    """Index of each row's largest logit, the first of equals: [T, V] -> [T]. On the CPU numpy is ten times as fast."""
    ids: list[int] = (on_host(logits) if logits.is_cpu else logits).argmax(-1).tolist()
    return ids


def on_host(logits: torch.Tensor) -> np.ndarray:
    """The float32 array of a tensor on the CPU. It makes as few calls as possible, because it runs after a forward,
    when the caches are cold."""
    return (logits if logits.dtype is torch.float32 else logits.float()).numpy()


def draw(probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One token id per row: [T, V] -> [T] int64.

    By inversion: it uses one random number per row, where `torch.multinomial` draws one for every token of the
    vocabulary. It sums in float64, so that no token's share is lost in rounding.
    """
    cumulative = probs.cumsum(-1, dtype=torch.float64)  # [T, V]
    points = torch.rand((len(probs), 1), generator=generator, device=probs.device, dtype=torch.float64)
    return torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True).squeeze(-1)
