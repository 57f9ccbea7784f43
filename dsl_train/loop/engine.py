"""The loop: draft, verify, commit. Its slow twin `autoregressive` is the definition of correct.

Owners: committed tokens - `_Sequence`, changed by `commit` only; KV caches - their runner; randomness - one generator
per text; features' view of text and block - the drafter; memory of adaptive rules - the policy.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from dsl_train.base.policy import Policy, tell_times
from dsl_train.base.records import DslError, GenerationResult, Round
from dsl_train.base.sampling import Sampling, draw, most_likely
from dsl_train.loop.block import Verification, checked
from dsl_train.loop.drafter import DraftBlock, Drafter
from dsl_train.loop.verify import Verdict, token_probs, verify, verify_greedy
from dsl_train.runners.cached import CachedModel

OnRound = Callable[[Round], None]


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

    @torch.inference_mode()
    def generate(
        self,
        prompt_token_ids: Sequence[int],
        max_new_tokens: int = 128,
        seed: int = 0,
        on_round: OnRound | None = None,
        resume: bool = False,
    ) -> GenerationResult:
        """Continue the prompt. `on_round` is called after every commit, the prompt's own first token included.
        `resume` keeps what the models' caches share with the prompt, as from turn to turn of a conversation.

        Raises DslError if the prompt is empty or does not fit the target's context.
        """
        began = time.perf_counter()
        text = _Sequence.begin(prompt_token_ids, max_new_tokens, self.target.context, self.eos_token_ids)
        generator = torch.Generator(self.target.device).manual_seed(seed)
        drafter = Drafter(self.draft, self.policy, self.sampling, self.eos_token_ids, prompt_token_ids)
        for model in (self.target, self.draft):
            if resume:
                model.resume(prompt_token_ids)
            else:
                model.reset()
        rounds: list[Round] = []
        while not text.finish_reason:
            rounds.append(self.run_round(text, drafter, generator))
            if on_round:
                on_round(rounds[-1])
        seconds = time.perf_counter() - began
        return GenerationResult(tuple(prompt_token_ids), text.response, text.finish_reason, tuple(rounds[1:]), seconds)

    def run_round(self, text: "_Sequence", drafter: Drafter, generator: torch.Generator) -> Round:
        """Draft a block, verify it, commit what holds. The first round is the prompt's forward and drafts nothing."""
        start, began = len(text.tokens), time.perf_counter()
        block = drafter.draft_block(text.tokens, self._draft_limit(text), generator)
        drafted = time.perf_counter()
        text.tokens.extend(block.token_ids)  # for this forward only: a copy would cost the more the longer the text
        logits = self.target.logits(text.tokens, keep=len(block.token_ids) + 1)  # [K + 1, V]
        del text.tokens[start:]
        finished = self._commit(text, drafter, block, logits, generator)
        verified = time.perf_counter()  # the choice is on the host
        self.target.truncate(len(text.tokens) - 1)
        drafter.draft.truncate(start + finished.num_accepted)
        if start > text.prompt_length:
            self.policy.observe(finished)
            seconds = (drafted - began, verified - drafted, time.perf_counter() - began)
            tell_times(self.policy, len(block.token_ids), *seconds)
        return finished

    def _draft_limit(self, text: "_Sequence") -> int:
        """No more drafts than the text has room for beside the extra token, nor than either context holds."""
        if len(text.tokens) == text.prompt_length:
            return 0
        room = min(text.end - 1, self.target.context, self.draft.context) - len(text.tokens)
        return min(self.policy.max_lookahead, room)

    def _commit(
        self, text: "_Sequence", drafter: Drafter, block: DraftBlock, logits: torch.Tensor, generator: torch.Generator
    ) -> Round:
        start, drafted = len(text.tokens), block.token_ids
        if self.sampling.greedy:
            verdict = verify_greedy(most_likely(logits), drafted)
        else:
            target_probs = self.sampling.probs(logits)  # [K + 1, V]
            draft_probs = block.probs if block.probs is not None else target_probs[:0]
            verdict = verify(target_probs, draft_probs, drafted, generator, self.verification)
        committed = text.commit([*drafted[: verdict.num_accepted], verdict.token_id])
        if drafter.view:
            if self.sampling.greedy:
                agreements, target_token_probs = _greedy_agreements(verdict, drafted), [1.0] * len(committed)
            else:
                target_token_probs = token_probs(target_probs, committed)
                agreements = _sampled_agreements(draft_probs, committed, target_token_probs)
            drafter.commit(committed, agreements[: len(committed)], target_token_probs)
        return Round(start, drafted, verdict.num_accepted, tuple(committed))


def _greedy_agreements(verdict: Verdict, drafted: Sequence[int]) -> list[float]:
    """1 for accepted tokens, 0 for a corrected one; a bonus token has none yet."""
    return [1.0] * verdict.num_accepted + [0.0] * (verdict.num_accepted < len(drafted))


def _sampled_agreements(
    draft_probs: torch.Tensor, committed: Sequence[int], target_token_probs: Sequence[float]
) -> list[float]:
    """min(1, draft/target) of the committed tokens within the block."""
    known = committed[: len(draft_probs)]
    if not known:
        return []
    pairs = zip(token_probs(draft_probs, known), target_token_probs, strict=False)
    return [min(1.0, draft_prob / target_prob) for draft_prob, target_prob in pairs]


@dataclass
class _Sequence:
    """The committed tokens, and whether they are at an end."""

    tokens: list[int]
    prompt_length: int
    end: int
    """Text length at which generation stops."""
    eos_token_ids: frozenset[int]
    finish_reason: str = ""

    @classmethod
    def begin(
        cls, prompt_token_ids: Sequence[int], max_new_tokens: int, context: int, eos_token_ids: frozenset[int]
    ) -> "_Sequence":
        if not prompt_token_ids:
            raise DslError("the prompt has no tokens; give it at least one (a beginning-of-text token, say)")
        if len(prompt_token_ids) > context:
            raise DslError(
                f"the prompt has {len(prompt_token_ids)} tokens but the target's context holds {context}; "
                "shorten the prompt or use a target with a longer context"
            )
        if max_new_tokens < 1:
            raise DslError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        length = len(prompt_token_ids)
        return cls(list(prompt_token_ids), length, min(length + max_new_tokens, context + 1), eos_token_ids)

    def commit(self, token_ids: Sequence[int]) -> list[int]:
        """Append up to the end of the text; returns what was appended."""
        committed: list[int] = []
        for token_id in token_ids:
            committed.append(token_id)
            self.tokens.append(token_id)
            if token_id in self.eos_token_ids:
                self.finish_reason = "eos"
            elif len(self.tokens) == self.end:
                self.finish_reason = "length"
            if self.finish_reason:
                break
        return committed

    @property
    def response(self) -> tuple[int, ...]:
        return tuple(self.tokens[self.prompt_length :])


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
    text = _Sequence.begin(prompt_token_ids, max_new_tokens, target.context, frozenset(eos_token_ids))
    generator = torch.Generator(target.device).manual_seed(seed)
    target.reset()
    while not text.finish_reason:
        logits = target.logits(text.tokens, keep=1)  # [1, V]
        text.commit(most_likely(logits) if sampling.greedy else draw(sampling.probs(logits), generator).tolist())
        target.truncate(len(text.tokens) - 1)  # nothing to forget, but layers with a window may drop what is behind it
    seconds = time.perf_counter() - began
    return GenerationResult(tuple(prompt_token_ids), text.response, text.finish_reason, (), seconds)
