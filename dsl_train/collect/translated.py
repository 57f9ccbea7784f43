"""Pairs of two tokenizers: the target's greedy answer, written in the draft's tokens.

transformers' universal assisted generation gives the draft the text so far in the draft's own tokens and drafts in them
(`AssistedCandidateGeneratorDifferentTokenizers`); a drafted token is right if the text continues with it. The traces
hold the whole text as the draft's tokenizer writes it, and at each of its tokens what the draft would have proposed.
Two things differ in service: there the text is converted piece by piece, which may cut it elsewhere for some tokens;
and a block is verified in the target's tokens, so half a token of the target's is not accepted. End-of-text tokens are
not text and are lost by the conversion, there and here: every text ends by length.
"""

import logging
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.collect.responses import is_possible, refusal
from dsl_train.collect.text import Request
from dsl_train.loop.engine import autoregressive
from dsl_train.pair.loading import Pair
from dsl_train.runners.cached import CachedModel

_LOG = logging.getLogger(__name__)


class Translator:
    """Asks the target, and rewrites requests in the draft's tokens."""

    def __init__(self, pair: Pair, draft_tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> None:
        """`pair` has the target's tokenizer. Raises DslError for one that is no decoder-only pair."""
        if pair.kind != "decoder-only":
            raise DslError(
                f"target {pair.target_identity.id} and draft {pair.draft_identity.id} have different tokenizers, and "
                f"such {pair.kind} pairs cannot be collected; choose a draft of the target's family"
            )
        self._pair, self._tokenizer, self._max_new_tokens = pair, draft_tokenizer, max_new_tokens
        self._target = CachedModel(pair.target)
        _LOG.warning(
            "target %s and draft %s have different tokenizers: traces are in the draft's tokens, and their predictor "
            "is for dsl_train.attach with assistant_tokenizer=",
            *(pair.target_identity.id, pair.draft_identity.id),
        )

    @property
    def labelling(self) -> Pair:
        """The draft beside itself: the answer is known, and nothing more is asked of the target."""
        return replace(self._pair, target=self._pair.draft, tokenizer=self._tokenizer)

    @torch.inference_mode()
    def translate(self, request: Request) -> Request:
        """A prompt and its response, in the draft's tokens; where the two share a token, the response begins with it.
        Raises DslError for a text that is sampled, or that the draft's tokenizer can make nothing of."""
        if not request.sampling.greedy:
            raise DslError(
                f"the text is sampled (temperature {request.sampling.temperature}), and target and draft have "
                "different tokenizers; only greedy texts can be collected then, as transformers only decodes greedily"
            )
        request.check(self._target.context, len(self._pair.tokenizer), self._pair.eos_token_ids)
        response = request.response_token_ids
        if response is None:
            ends = self._pair.eos_token_ids
            answer = autoregressive(self._target, request.prompt_token_ids, self._max_new_tokens, eos_token_ids=ends)
            response = answer.token_ids
        else:
            self._check(request.prompt_token_ids, response)
        prompt, whole = (
            self._converted(ids) for ids in (request.prompt_token_ids, (*request.prompt_token_ids, *response))
        )
        shared = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
        if not 0 < shared < len(whole):
            raise DslError(
                f"the draft's tokenizer makes {len(prompt)} tokens of the prompt and {len(whole)} of prompt and "
                "response; remove this text"
            )
        return replace(request, prompt_token_ids=whole[:shared], response_token_ids=whole[shared:])

    def _check(self, prompt: tuple[int, ...], response: tuple[int, ...]) -> None:
        """Raises DslError unless the target would have given this response."""
        self._target.reset()
        logits = self._target.logits([*prompt, *response[:-1]], keep=len(response))
        possible = is_possible(logits, None, torch.tensor(response, device=logits.device))
        if not possible.all():
            place = int((~possible).nonzero()[0])
            raise DslError(refusal(Sampling(), logits[place], response[place], place))

    def _converted(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """As transformers does it."""
        text = self._pair.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=True)
        return tuple(self._tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])
