"""One text of transformers' assisted generation, drafted by our drafter.

Letters: K drafted tokens of a round, V vocabulary.
"""

import time

import torch
from transformers import LogitsProcessor

from dsl_train.base.policy import Needs, Policy, draft_temperature_of, tell_times
from dsl_train.base.records import DraftStep, Round
from dsl_train.base.sampling import Sampling
from dsl_train.loop.drafter import Drafter
from dsl_train.loop.text import Text, view_for
from dsl_train.loop.verify import compare
from dsl_train.runners.processed import ProcessedModel

_NO_END = 1 << 62  # transformers knows where the text ends


class AssistedText:
    """Drafts one block per round; the next call shows which of its tokens were accepted."""

    _text: Text
    _drafted: tuple[int, ...]
    _drafter: Drafter
    _draft_began: float
    _draft_ended: float

    def __init__(
        self,
        draft: ProcessedModel,
        policy: Policy,
        sampling: Sampling,
        eos_token_ids: frozenset[int],
        token_ids: list[int],
        num_padding: int,
    ) -> None:
        self.draft_model, self.policy, self.sampling, self.num_padding = draft, policy, sampling, num_padding
        self.observer = TargetObserver()
        self._eos_token_ids = eos_token_ids
        self._draft_probs: torch.Tensor | None = None  # [K, V] unless greedy
        self._generator = torch.Generator(draft.device).manual_seed(int(torch.randint(1 << 62, ())))
        self._begin(token_ids[num_padding:])

    def draft(self, token_ids: list[int], limit: int) -> tuple[list[int], tuple[torch.Tensor, ...]]:
        """Tokens after the text so far, at least one, and the scores [1, V] whose softmax each was drawn from."""
        began = time.perf_counter()
        committed = token_ids[self.num_padding + len(self._text.tokens) :]
        if committed:
            self._commit(committed)
            self._asked.can_ask = True
            self._tell_times(began)
        elif self.policy.needs == "features":
            limit = 1  # the target has no logits yet, so the policy cannot be asked
        limit = min(limit, self.policy.max_lookahead, self.draft_model.context - len(self._text.tokens))
        if limit < 1 and len(self._text.tokens) >= self.draft_model.context:
            return self._guess()
        block = self._drafter.draft_block(self._text, max(1, limit))
        self._drafted, self._draft_began, self._draft_ended = block.token_ids, began, time.perf_counter()
        self._draft_probs = block.probs
        if block.probs is None:  # greedy: compared by token alone
            return list(block.token_ids), (torch.zeros(1, self.draft_model.width),) * len(block.token_ids)
        return list(block.token_ids), tuple(block.probs.log()[:, None])

    def _begin(self, tokens: list[int]) -> None:
        view = view_for(self.policy, tokens, self.sampling)
        self._text = Text(tokens, len(tokens), _NO_END, self._eos_token_ids, self._generator, view)
        self._drafted, self._asked = (), _AtLeastOne(self.policy)
        self._drafter = Drafter(self.draft_model, self._asked, self.sampling)
        self.draft_model.reset()
        self._asked.reset()

    def _guess(self) -> tuple[list[int], tuple[torch.Tensor, ...]]:
        """Beyond the draft's context: one random token, since transformers requires one."""
        scores = torch.zeros(1, self.draft_model.width)
        self._drafted = ()
        return torch.multinomial(scores.softmax(-1), 1, generator=self._generator)[0].tolist(), (scores,)

    def _commit(self, committed: list[int]) -> None:
        start, num_accepted = len(self._text.tokens), min(len(committed) - 1, len(self._drafted))
        logits = self.observer.take(len(committed))  # [committed, V]
        self._text.tokens += committed
        self.draft_model.truncate(start + num_accepted)
        if self._text.view:
            target_probs = None if self.sampling.greedy else self.sampling.probs(logits)
            self._text.tell(committed, *compare(committed, self._drafted, self._draft_probs, target_probs))
        if self._drafted:
            self.policy.observe(Round(start, self._drafted, num_accepted, tuple(committed)))

    def _tell_times(self, now: float) -> None:
        """Of the round that ended `now`, all that transformers does included."""
        if self._drafted:
            seconds = (self._draft_ended - self._draft_began, now - self._draft_ended, now - self._draft_began)
            tell_times(self.policy, len(self._drafted), *seconds)


class TargetObserver(LogitsProcessor):
    """Records the scores between the target's processors and its warpers, and changes nothing."""

    def __init__(self) -> None:
        self._rows: list[torch.Tensor] = []  # of the last verification, [1, V] each

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._rows.append(scores.clone())  # transformers writes its result over them
        return scores

    def take(self, count: int) -> torch.Tensor:
        """The first `count` rows since the last call, [count, V]."""
        rows, self._rows = self._rows[:count], []
        return torch.cat(rows)


class _AtLeastOne(Policy):
    """A policy whose first token is drafted even where it wants none, as transformers requires; no further one then.

    Before the target has written anything a policy that reads features is not asked.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.name, self.max_lookahead = policy, policy.name, policy.max_lookahead
        self.needs: Needs = policy.needs
        self.can_ask = policy.needs != "features"
        self._wanted = True

    def wants_another(self, step: DraftStep) -> bool:
        if step.position == 0:
            can_ask = self.can_ask and self.policy.max_lookahead > 0  # 0: it rests
            self._wanted = can_ask and self.policy.wants_another(step)
            return True
        return self._wanted and self.policy.wants_another(step)

    def draft_temperature(self, temperature: float) -> float:
        return draft_temperature_of(self.policy, temperature)

    def observe(self, finished: Round) -> None:
        self.policy.observe(finished)

    def reset(self) -> None:
        self.policy.reset()
