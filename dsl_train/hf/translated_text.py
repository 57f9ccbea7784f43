"""One text of transformers' assisted generation whose draft has a tokenizer of its own.

transformers writes the text so far in the draft's tokens, tokenized anew where the target's do not fit them, and
converts drafted tokens to the target's. Greedy only: a drafted token has agreed if the text continues with it.
"""

import torch

from dsl_train.base.records import Round
from dsl_train.hf.assisted_text import AssistedText
from dsl_train.loop.verify import compare


class TranslatedText(AssistedText):
    """In the draft's tokens throughout; of the target only its text is known."""

    def draft(self, token_ids: list[int], limit: int) -> tuple[list[int], tuple[torch.Tensor, ...]]:
        """May draft nothing: a text of special tokens alone is empty in the draft's."""
        if not token_ids:
            return [], ()
        if token_ids[: len(self._text.tokens)] != self._text.tokens:
            self._begin(token_ids)  # read like a prompt
        elif len(token_ids) == len(self._text.tokens):  # the target wrote nothing that the draft could read
            self.draft_model.truncate(len(token_ids) - 1)
        return super().draft(token_ids, limit)

    def _commit(self, committed: list[int]) -> None:
        start = len(self._text.tokens)
        known = list(zip(committed, self._drafted, strict=False))
        num_accepted = next((i for i, (token_id, drafted) in enumerate(known) if token_id != drafted), len(known))
        self._text.tokens += committed
        agreements, target_token_probs = compare(committed[: num_accepted + 1], self._drafted, None, None)
        target_token_probs += [1.0] * (len(committed) - len(target_token_probs))
        self.draft_model.truncate(start + max(len(agreements), 1) - 1)  # the rest of the text is yet to be predicted
        self._text.tell(committed, agreements, target_token_probs)
        if self._drafted:
            self.policy.observe(Round(start, self._drafted, num_accepted, tuple(committed)))
