"""The features of one text, computed when someone reads them; what happened meanwhile waits until then."""

from collections.abc import Sequence

import numpy as np

from dsl_train.features import BlockState, TextState, assemble
from dsl_train.records import DraftPrimitives


class FeatureView:
    """Told of everything, it computes nothing before it is asked: most rounds of a policy that may guess are not."""

    def __init__(self, prompt_token_ids: Sequence[int], temperature: float) -> None:
        self._text = TextState(prompt_token_ids, temperature)
        self._block: BlockState | None = None
        self._drafted: list[DraftPrimitives] = []  # of the block
        self._committed: list[int] = []  # that the text has not been told of yet
        self._agreements: list[float] = []  # likewise

    def commit(self, token_ids: Sequence[int]) -> None:
        self._committed += token_ids

    def agree(self, agreements: Sequence[float]) -> None:
        """min(1, draft/target) of the next response tokens that have none yet."""
        self._agreements += agreements

    def begin_block(self) -> None:
        self._block, self._drafted = None, []

    def append(self, primitives: DraftPrimitives) -> None:
        """A token was drafted."""
        self._drafted.append(primitives)

    def vector(self) -> np.ndarray:
        """[F] float32, `features.assemble` of all this."""
        for token_id in self._committed:
            self._text.commit(token_id)
        for agreement in self._agreements:
            self._text.agree(agreement)
        self._committed.clear()
        self._agreements.clear()
        block = self._block = self._block or BlockState(self._text)
        for primitives in self._drafted[len(block.token_ids) :]:
            block.append(primitives)
        return np.array(assemble(block), dtype=np.float32)
