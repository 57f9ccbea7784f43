"""Our loop as transformers' decoding method:

    target.generate(**inputs, custom_generate=dsl_train.hf.decode, draft_model=draft)

`generate` prepares inputs, processors and stopping criteria; this runs the engine under them. When `custom_generate` is
a function, transformers hands on neither `streamer`, which is read from its call, nor `tokenizer`: pass stop strings as
`stopping_criteria=[StopStringCriteria(tokenizer, ...)]`.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput
from transformers.utils import ModelOutput

from dsl_train.base.policy import Policy
from dsl_train.base.records import DslError
from dsl_train.hf.callers import running
from dsl_train.hf.policy import policy_of
from dsl_train.hf.request import read_request
from dsl_train.hf.stopping import TextWatch
from dsl_train.loop.block import Verification
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel
from dsl_train.runners.embedded import EmbeddedPromptModel
from dsl_train.runners.encoder_decoder import EncoderDecoderModel
from dsl_train.runners.processed import ProcessedModel, split_processors


def decode(
    model: PreTrainedModel,
    input_ids: torch.Tensor,  # [1, T]
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft_model: PreTrainedModel | None = None,
    predictor: Predictor | str | Path | None = None,
    policy: str | Policy = "learned",
    threshold: float | None = None,
    verification: Verification = "block",
    inputs_tensor: torch.Tensor | None = None,
    **model_kwargs: Any,
) -> torch.Tensor | ModelOutput:
    """The target's own tokens (greedy) or distribution (sampling), [1, T + new], or transformers' output object.

    `draft_model`, `predictor`, `policy`, `threshold` and `verification` (`dsl_train.generate` describes them) are
    arguments of `generate` here; the predictor is by default the one in the draft's `dsl` folder. Raises DslError for
    every option it cannot honour.
    """
    if draft_model is None:
        raise DslError("custom_generate=dsl_train.hf.decode needs a draft; pass draft_model= (not assistant_model=)")
    chosen = policy_of(model, draft_model, policy, predictor, threshold)
    request = read_request(model, input_ids, stopping_criteria, generation_config, model_kwargs)
    processors, sampling = split_processors(logits_processor, bool(generation_config.do_sample))
    width = model.config.get_text_config().vocab_size
    target, draft = (
        ProcessedModel(runner, processors, request.padding, width, request.keep_rows and runner.model is model)
        for runner in _runners(model, draft_model, inputs_tensor, len(request.padding), model_kwargs)
    )
    request.check_room(target.context)
    engine = SpeculativeEngine(target, draft, chosen, sampling, request.eos_token_ids, verification)
    streamer = running(GenerationMixin.generate).get("streamer")
    watch = TextWatch(input_ids, request.criteria, streamer, target.scores if request.output_scores else None)
    seed = int(torch.randint(1 << 62, ()))  # of torch's global generator, as transformers draws from it
    text = engine.begin(request.token_ids, request.max_new_tokens, seed)
    for finished in engine.rounds(text):
        if not watch.take(finished):
            break
    watch.end()
    if not request.return_dict:
        return watch.token_ids[None]
    kind: type[ModelOutput] = (
        GenerateEncoderDecoderOutput if model.config.is_encoder_decoder else GenerateDecoderOnlyOutput
    )
    span = (input_ids.shape[1], len(watch.token_ids))
    return kind(
        sequences=watch.token_ids[None],
        scores=target.scores(*span) if request.output_scores else None,
        logits=target.raw_logits(*span) if request.output_logits else None,
    )


def _runners(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    inputs: torch.Tensor | None,
    num_padding: int,
    model_kwargs: dict[str, Any],
) -> list[CachedModel]:
    embeddings = model_kwargs.get("inputs_embeds")
    if not target.config.is_encoder_decoder:
        given = None if embeddings is None else embeddings[:, num_padding:]
        return [CachedModel(target) if given is None else EmbeddedPromptModel(target, given), CachedModel(draft)]
    mask = model_kwargs.get("attention_mask")
    states = model_kwargs["encoder_outputs"].last_hidden_state
    assert inputs is not None, "transformers passes the encoder's input to a decoding method that asks for it"
    return [EncoderDecoderModel(target, states, mask), EncoderDecoderModel.encode(draft, inputs, mask)]
