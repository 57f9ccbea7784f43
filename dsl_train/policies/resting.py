"""Rounds without drafts, for a draft that is never accepted or never wanted.

Each round that drafts is one piece of evidence: the survival that asked for its first token, and whether that token was
accepted. A sequential test weighs "the estimate is right" against "hardly any draft is ever accepted". A surplus of
good evidence is not kept, so a draft that was good for long is given up as soon as one that never was.
"""

import math


class Resting:
    """Rests for some rounds once the test is lost, twice as long each time a try fails; one accepted draft ends that.

    On the reference pair's texts it costs a fitting draft nothing and gives a useless one up after 11 to 16 rounds
    (docs/study.md).
    """

    HARDLY = 0.05
    """Acceptance of a useless draft's token, as a share of what was estimated."""
    SUREST = 0.9
    """Estimates above count as this one: a few that are sure and wrong prove nothing."""
    LIMIT = 15.0
    """Log-likelihood ratio at which the test is lost: by chance in a round of e^15."""
    FIRST_REST, LONGEST_REST = 4, 128
    """Rounds."""
    IN_VAIN, REFUSED_REST = 16, 4
    """Rounds in a row that wanted no draft, and the rounds of rest after that and after each further one."""

    def __init__(self) -> None:
        self._evidence = 0.0  # log-likelihood ratio that the draft is useless
        self._rest, self._left = self.FIRST_REST, 0
        self._num_refused = 0

    @property
    def awake(self) -> bool:
        return self._left == 0

    def refuse(self) -> None:
        """A round was asked and wanted no draft; called before it is observed."""
        self._num_refused += 1
        if self._num_refused >= self.IN_VAIN:
            self._left = self.REFUSED_REST + 1

    def observe(self, survival: float | None, accepted: bool) -> None:
        """A round: the estimate that asked for its first draft (None if it drafted nothing) and what became of it."""
        if survival is not None:
            self._num_refused = 0
        if self._left:
            self._left -= 1
        elif survival is not None and accepted:
            tried = self._evidence == self.LIMIT
            self._evidence = 0.0 if tried else max(0.0, self._evidence + math.log(self.HARDLY))
            self._rest = self.FIRST_REST
        elif survival is not None:
            prob = min(survival, self.SUREST)
            self._evidence += math.log((1.0 - self.HARDLY * prob) / (1.0 - prob))
            if self._evidence > self.LIMIT:
                self._evidence = self.LIMIT
                self._left, self._rest = self._rest, min(2 * self._rest, self.LONGEST_REST)
