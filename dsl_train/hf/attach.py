"""Our stop rule in transformers' own assisted generation:

    target.generate(**inputs, assistant_model=dsl_train.attach(draft))

transformers' loop asks the draft for a block and verifies it, but does not report the target's logits. The features
need them, so they are read by a logits processor that is added to the loop's list. A block has at least one token
there: lookahead 0 does not exist.
"""

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.generation.candidate_generator import AssistedCandidateGeneratorDifferentTokenizers
from transformers.generation.utils import GenerateDecoderOnlyOutput

from dsl_train.api.serving import find_predictor
from dsl_train.base.policy import Policy
from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.hf.assisted_text import AssistedText
from dsl_train.hf.callers import running
from dsl_train.hf.policy import policy_across_tokenizers, policy_of
from dsl_train.hf.request import left_padding
from dsl_train.hf.translated_text import TranslatedText
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel
from dsl_train.runners.encoder_decoder import EncoderDecoderModel
from dsl_train.runners.processed import ProcessedModel, split_processors
from dsl_train.runners.supported import check_runs, differ_by_padding

_NO_LIMIT = 1 << 20  # draft tokens a round as far as transformers is concerned: the policy stops


def attach(
    draft: PreTrainedModel,
    predictor: Predictor | str | Path | None = None,
    threshold: float | None = None,
    policy: str | Policy = "learned",
) -> "AttachedDraft":
    """What to pass as `assistant_model`; for any number of texts, one at a time in each thread. `draft` itself is not
    changed.

    The predictor is by default the one in the draft's `dsl` folder. Raises DslError if there is none, and for a draft
    whose state cannot go back; at the first text if the predictor was trained for another pair. A target whose state
    cannot go back is refused by transformers itself, with a ValueError, before it looks at the draft.
    """
    check_runs(draft, "draft")
    if policy == "learned" and not isinstance(predictor, Predictor):
        predictor = find_predictor(str(draft.name_or_path), predictor)
    return AttachedDraft(draft, predictor, threshold, policy)


class AttachedDraft:
    """Has all attributes of the draft, but drafts with our drafter."""

    def __init__(
        self,
        draft: PreTrainedModel,
        predictor: Predictor | str | Path | None,
        threshold: float | None,
        policy: str | Policy,
    ) -> None:
        self.draft = draft
        self.generation_config = copy.deepcopy(draft.generation_config)
        self.generation_config.update(
            num_assistant_tokens=_NO_LIMIT, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
        )
        self._wanted = (policy, predictor, threshold)
        self._of_thread = threading.local()  # the policy, and for which target

    def __getattr__(self, name: str) -> Any:
        if name == "draft" or name.startswith("__"):  # asked for by copy and pickle before the draft is set
            raise AttributeError(name)
        return getattr(self.draft, name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_of_thread"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _of_thread=threading.local())

    @property
    def config(self) -> PreTrainedConfig:
        """The draft's. While a target that pads the common vocabulary otherwise checks it, with the target's number of
        tokens, since transformers would ask for two tokenizers; the logits are cut or filled up to that number."""
        own, call = self.draft.config, running(GenerationMixin._validate_generation_mode)
        target, options = call.get("self"), call.get("generation_mode_kwargs") or {}
        if target is None or "assistant_tokenizer" in options:
            return own
        sizes = [config.get_text_config().vocab_size for config in (target.config, own)]
        if not differ_by_padding(*sizes):
            return own
        shown = copy.deepcopy(own)
        shown.get_text_config().vocab_size = sizes[0]
        return shown

    def generate(
        self,
        input_ids: torch.Tensor | None = None,  # [1, T]
        decoder_input_ids: torch.Tensor | None = None,  # [1, T] of encoder-decoders
        max_new_tokens: int = 1,
        past_key_values: "_Continuing | None" = None,
        **options: Any,
    ) -> GenerateDecoderOnlyOutput:
        """Called by transformers once a round with the text so far; without `past_key_values` a text begins."""
        token_ids = input_ids if input_ids is not None else decoder_input_ids
        assert token_ids is not None, "transformers names the text input_ids, or decoder_input_ids"
        text = past_key_values.text if past_key_values else self._begin(token_ids, options)
        with torch.inference_mode():
            drafted, scores = text.draft(token_ids[0].tolist(), max_new_tokens)
        sequences = torch.cat([token_ids, token_ids.new_tensor([drafted])], dim=1).long()
        fields: dict[str, Any] = {"sequences": sequences, "scores": scores, "past_key_values": _Continuing(text)}
        return GenerateDecoderOnlyOutput(**fields)

    def _begin(self, token_ids: torch.Tensor, options: dict[str, Any]) -> AssistedText:
        loop = running(GenerationMixin._assisted_decoding)  # no argument holds the target or its processors
        if not loop:
            raise DslError("an attached draft generates only as assistant_model= of a target's generate")
        target: PreTrainedModel = loop["self"]
        settings, processors = loop["generation_config"], loop["logits_processor"]
        if settings.assistant_ensemble_weight is not None:
            raise DslError("assistant_ensemble_weight mixes the draft into the output; leave it out")
        if isinstance(loop["candidate_generator"], AssistedCandidateGeneratorDifferentTokenizers):
            return self._begin_translated(target, token_ids, bool(settings.do_sample))
        policy = self._policy(target, policy_of)
        own, sampling = split_processors(processors, bool(settings.do_sample))
        num_padding = 0 if target.config.is_encoder_decoder else left_padding(token_ids, options)
        runner = ProcessedModel(
            self._runner(options),
            own,
            token_ids[0, :num_padding].tolist(),
            target.config.get_text_config().vocab_size,
        )
        text = AssistedText(runner, policy, sampling, _ends(settings), token_ids[0].tolist(), num_padding)
        processors.insert(len(own), text.observer)
        return text

    def _begin_translated(self, target: PreTrainedModel, token_ids: torch.Tensor, do_sample: bool) -> AssistedText:
        if do_sample:
            raise self._cannot_sample()
        policy = self._policy(target, policy_across_tokenizers)
        # The target's processors know other tokens
        runner = ProcessedModel(CachedModel(self.draft), (), width=self.draft.config.get_text_config().vocab_size)
        ends = _ends(self.draft.generation_config)
        return TranslatedText(runner, policy, Sampling(), ends, token_ids[0].tolist(), num_padding=0)

    def _policy(self, target: PreTrainedModel, choose: Callable[..., Policy]) -> Policy:
        """Chosen once a thread and target: rules that learn from text to text would mix the texts of several threads. A
        policy that was given as an object is shared by them all."""
        found = getattr(self._of_thread, "policy", None)
        if found is None or found[0] is not target:
            found = self._of_thread.policy = (target, choose(target, self.draft, *self._wanted))
        return found[1]

    def set_output_embeddings(self, head: torch.nn.Module) -> None:
        """transformers would cut the draft's head down to the tokens that both tokenizers know, for good."""
        raise self._cannot_sample()

    def _cannot_sample(self) -> DslError:
        return DslError(
            f"draft {self.draft.name_or_path} has a tokenizer of its own, and transformers samples with such a draft "
            "only by rebuilding it; pass do_sample=False, or choose a draft of the target's tokenizer"
        )

    def _runner(self, options: dict[str, Any]) -> CachedModel:
        if not self.draft.config.is_encoder_decoder:
            return CachedModel(self.draft)
        return EncoderDecoderModel(
            self.draft, options["encoder_outputs"].last_hidden_state, options.get("attention_mask")
        )


def _ends(settings: GenerationConfig) -> frozenset[int]:
    eos = settings.eos_token_id
    return frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])


class _Continuing:
    """Takes the place of the draft's cache and keeps the text that goes on: state belongs to a text, so that several
    threads can generate with one attached draft."""

    def __init__(self, text: AssistedText) -> None:
        self.text = text

    def get_seq_length(self) -> int:
        return 0

    def crop(self, tokens_to_remove: int) -> None: ...
