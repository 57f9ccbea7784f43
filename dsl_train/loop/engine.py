"""The loop: draft, verify, commit. Its slow twin `autoregressive` is the definition of correct.

A newcomer reads four files: this one, `drafter.py`, `verify.py` and `text.py`. Owners: committed tokens, features' view
and random draws - the text; KV caches - their runner; memory of adaptive rules - the policy.
"""

import time
from collections.abc import Iterable, Iterator, Sequence

import torch

from dsl_train.base.policy import Policy, tell_times
from dsl_train.base.records import GenerationResult, Round
from dsl_train.base.sampling import Sampling, draw, most_likely
from dsl_train.loop.block import Verification, checked
from dsl_train.loop.drafter import Drafter
from dsl_train.loop.text import Text, view_for
from dsl_train.loop.verify import compare, judge
from dsl_train.runners.cached import CachedModel


class SpeculativeEngine:
    """Generates with a target, a draft and a policy; the tokens follow the target's own distribution."""

    def __init__(
        self,
        target: CachedModel,
        draft: CachedModel,
        policy: Policy,
        sampling: Sampling | None = None,
        eos_token_ids: Iterable[int] = (),
        verification: Verification = "block",
    ) -> None:
        """`verification` is of sampled blocks with two or more drafts."""
        self.target, self.draft, self.policy, self.verification = target, draft, policy, checked(verification)
        self.sampling = sampling or Sampling()
        self.eos_token_ids = frozenset(eos_token_ids)
        self._drafter = Drafter(draft, policy, self.sampling)

    def generate(
        self, prompt_token_ids: Sequence[int], max_new_tokens: int = 128, seed: int = 0, resume: bool = False
    ) -> GenerationResult:
        """Continue the prompt to its end. Arguments and errors are those of :meth:`begin`."""
        began = time.perf_counter()
        text = self.begin(prompt_token_ids, max_new_tokens, seed, resume)
        _, *rounds = self.rounds(text)
        return text.result(rounds, time.perf_counter() - began)

    def begin(
        self, prompt_token_ids: Sequence[int], max_new_tokens: int = 128, seed: int = 0, resume: bool = False
    ) -> Text:
        """A text for :meth:`rounds`, one at a time. `resume` keeps what the models' caches share with the prompt, as
        from turn to turn of a conversation.

        Raises DslError if the prompt is empty or does not fit the target's context.
        """
        generator = torch.Generator(self.target.device).manual_seed(seed)
        view, context = view_for(self.policy, prompt_token_ids, self.sampling), self.target.context
        text = Text.begin(prompt_token_ids, max_new_tokens, context, self.eos_token_ids, generator, view)
        self.policy.reset()
        for model in (self.target, self.draft):
            if resume:
                model.resume(prompt_token_ids)
            else:
                model.reset()
        return text

    @torch.inference_mode()
    def rounds(self, text: Text) -> Iterator[Round]:
        """Draft, verify and commit until the text ends; each round is given once it is committed, first of all that of
        the prompt's own forward, which drafts nothing. Whoever stops asking ends the text."""
        while not text.finish_reason:
            yield self._round(text)

    def _round(self, text: Text) -> Round:
        start, began = len(text.tokens), time.perf_counter()
        block = self._drafter.draft_block(text, self._draft_limit(text))
        drafted = time.perf_counter()
        text.tokens.extend(block.token_ids)  # for this forward only: a copy would cost the more the longer the text
        logits = self.target.logits(text.tokens, keep=len(block.token_ids) + 1)  # [K + 1, V]
        del text.tokens[start:]
        verdict = judge(logits, block.token_ids, block.probs, self.sampling, text.generator, self.verification)
        committed = text.commit([*block.token_ids[: verdict.num_accepted], verdict.token_id])
        if text.view:
            text.tell(committed, *compare(committed, block.token_ids, block.probs, verdict.target_probs))
        finished = Round(start, block.token_ids, verdict.num_accepted, tuple(committed))
        verified = time.perf_counter()  # the choice is on the host
        self.target.truncate(len(text.tokens) - 1)
        self.draft.truncate(start + finished.num_accepted)
        if start > text.prompt_length:
            self.policy.observe(finished)
            seconds = (drafted - began, verified - drafted, time.perf_counter() - began)
            tell_times(self.policy, len(block.token_ids), *seconds)
        return finished

    def _draft_limit(self, text: Text) -> int:
        """No more drafts than the text has room for beside the extra token, nor than either context holds."""
        if len(text.tokens) == text.prompt_length:
            return 0
        room = min(text.end - 1, self.target.context, self.draft.context) - len(text.tokens)
        return min(self.policy.max_lookahead, room)


@torch.inference_mode()
def autoregressive(
    target: CachedModel,
    prompt_token_ids: Sequence[int],
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    eos_token_ids: Iterable[int] = (),
    seed: int = 0,
) -> GenerationResult:
    """The target alone, one token a forward: what the engine must equal, and the time it must beat."""
    began, sampling = time.perf_counter(), sampling or Sampling()
    generator = torch.Generator(target.device).manual_seed(seed)
    text = Text.begin(prompt_token_ids, max_new_tokens, target.context, frozenset(eos_token_ids), generator)
    target.reset()
    while not text.finish_reason:
        logits = target.logits(text.tokens, keep=1)  # [1, V]
        text.commit(most_likely(logits) if sampling.greedy else draw(sampling.probs(logits), generator).tolist())
        target.truncate(len(text.tokens) - 1)  # nothing to forget, but layers with a window may drop what is behind it
    return text.result((), time.perf_counter() - began)
