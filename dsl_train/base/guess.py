"""Whether the predictor is worth asking, given what can be guessed of its answer. Standard library only.

Asking takes time, and most answers are no surprise. The guess is the survival last answered, times the draft's own
probability of every token drafted since. Training keeps what the predictor answered at guesses of every size; so what
a question is worth is known before it is asked: deciding by the answer instead of by the mean of such answers gains

    E[max(survival - threshold, 0)] - max(E[survival] - threshold, 0)   [tokens]

(the value of information: Howard 1966, IEEE Trans. SSC-2). It is asked where that exceeds its price.
Letters: B bins of guesses, M answers kept of each.
"""

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsl_train.base.cost import StopRule


@dataclass(frozen=True)
class GuessTable:
    """Of texts at one temperature."""

    temperature: float
    edges: tuple[float, ...]
    """[B - 1] rising: guesses between the bins."""
    answers: tuple[tuple[float, ...], ...]
    """[B][M] what was answered there: quantiles, equally likely."""
    first: tuple[float, ...]
    """[M] the same before the first draft, where there is nothing to guess from."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GuessTable":
        """What :meth:`to_dict` wrote. Raises KeyError, TypeError or ValueError if it is something else."""
        answers = tuple(tuple(map(float, of_bin)) for of_bin in values["answers"])
        edges, first = (tuple(map(float, values[name])) for name in ("edges", "first"))
        table = cls(float(values["temperature"]), edges, answers, first)
        if len(table.answers) != len(table.edges) + 1 or not all((*table.answers, table.first)):
            raise ValueError(f"{len(table.edges)} edges do not part {len(table.answers)} bins of answers")
        return table

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class AskingPlan:
    """Where to ask under a stop rule, and what to take for the answer elsewhere."""

    def __init__(self, table: GuessTable, rule: StopRule) -> None:
        self.first = _expected(table.first, rule.first, rule.question)
        """None: ask."""
        self._edges = table.edges
        self._expected = [  # [positions][B]
            [_expected(answers, threshold, rule.question) for answers in table.answers] for threshold in rule.thresholds
        ]

    def expected(self, position: int, guess: float) -> float | None:
        """The mean of the answers at such a guess behind `position` drafts; None if one had better ask."""
        return self._expected[min(position, len(self._expected) - 1)][bisect(self._edges, guess)]


def _expected(answers: Sequence[float], threshold: float, price: float) -> float | None:
    mean = sum(answers) / len(answers)
    informed = sum(max(0.0, answer - threshold) for answer in answers) / len(answers)
    return None if informed - max(0.0, mean - threshold) > price else mean


def nearest(tables: Sequence[GuessTable], temperature: float) -> GuessTable:
    """That of the temperature trained on which is nearest."""
    return min(tables, key=lambda table: abs(table.temperature - temperature))
