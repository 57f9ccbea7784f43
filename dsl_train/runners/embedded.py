"""A target whose prompt is given as embeddings: soft prompts, or what another model has written into them."""

import torch
from transformers import PreTrainedModel

from dsl_train.runners.cached import CachedModel, LibraryDecoder, with_state


class EmbeddedPromptModel(CachedModel):
    """Reads `embeddings` [1, T, hidden] in place of a text's first T tokens, whose ids are those of the draft alone."""

    def __init__(self, model: PreTrainedModel, embeddings: torch.Tensor) -> None:
        super().__init__(model)
        self._compiled, self._decoder = None, with_state(_EmbeddedDecoder(model, embeddings))
        self.reset()


class _EmbeddedDecoder(LibraryDecoder):
    def __init__(self, model: PreTrainedModel, embeddings: torch.Tensor) -> None:
        super().__init__(model)
        self._embeddings = embeddings

    def logits(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:
        given = self._embeddings[:, start : start + len(token_ids)]
        if not given.shape[1]:
            return super().logits(token_ids, start, keep)
        written = self.model.get_input_embeddings()(token_ids[None, given.shape[1] :])
        positions = self.positions(start, len(token_ids))
        return self.run(keep, inputs_embeds=torch.cat([given, written], dim=1), **positions)
