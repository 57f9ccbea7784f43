"""From the state of text and block to the feature vector: the one feature function.

Collection, training, replay and serving all call this module, so that a vector means the same everywhere. Letter: F
features. Knows no logits, models, caches, policies or files.
"""

from collections.abc import Sequence

import numpy as np

from dsl_train.base.records import DraftPrimitives
from dsl_train.features.entries import ALWAYS_KNOWN, FEATURES
from dsl_train.features.state import BlockState, TextState

_KNOWN_AT_FIRST = [(i, feature.value) for i, feature in enumerate(FEATURES) if feature.group in ALWAYS_KNOWN]
_VALUES = [feature.value for feature in FEATURES]


def assemble(block: BlockState) -> list[float]:
    """The feature vector [F] in `FEATURE_NAMES` order; at position 0, what is not known yet is 0."""
    text = block.text
    if block.token_ids:
        return [value(text, block) for value in _VALUES]
    vector = [0.0] * len(FEATURES)
    for i, value in _KNOWN_AT_FIRST:
        vector[i] = value(text, block)
    return vector


class FeatureView:
    """The features of one generation: told of every committed and drafted token, it gives the vector of the moment."""

    def __init__(self, prompt_token_ids: Sequence[int], temperature: float) -> None:
        self._text = TextState(prompt_token_ids, temperature)
        self.begin_block()

    def commit(self, token_ids: Sequence[int]) -> None:
        """Append response tokens to the text; `begin_block` follows before anything else is drafted."""
        for token_id in token_ids:
            self._text.commit(token_id)

    def agree(self, agreements: Sequence[float]) -> None:
        """Add min(1, draft/target) of the next response tokens that have none yet."""
        for agreement in agreements:
            self._text.agree(agreement)

    def begin_block(self) -> None:
        """Start a block after the committed text."""
        self._block = BlockState(self._text)

    def append(self, primitives: DraftPrimitives) -> None:
        """Add a drafted token to the block."""
        self._block.append(primitives)

    def vector(self) -> np.ndarray:
        """[F] float32"""
        return np.array(assemble(self._block), dtype=np.float32)
