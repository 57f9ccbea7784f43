"""`target.generate(..., custom_generate=dsl_train.hf.decode, draft_model=draft)` against `target.generate(...)`."""

import copy

import pytest
import torch
from conftest import make_model, make_tokenizer, perturb
from tiny_predictor import write_predictor
from transformers import (
    DynamicCache,
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    MaxTimeCriteria,
    StoppingCriteria,
    StopStringCriteria,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation.streamers import BaseStreamer

import dsl_train
from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.bench.distribution import exact_distribution, fit
from dsl_train.pair.identity import describe_model
from dsl_train.pair.loading import Pair
from dsl_train.runners.cached import CachedModel
from dsl_train.runners.processed import split_processors

PROMPT = torch.tensor([[50, 27, 63, 6, 17]])
LENGTH = 30


@pytest.fixture(scope="module")
def target():
    return make_model(seed=0)


@pytest.fixture(scope="module")
def draft(target):
    return perturb(target, scale=0.15, seed=1)


def ours(target, draft, inputs=PROMPT, policy="random:0.8,1,7", **options):
    options = {"max_new_tokens": LENGTH, "do_sample": False, **options}
    return target.generate(inputs, custom_generate=dsl_train.hf.decode, draft_model=draft, policy=policy, **options)


def theirs(target, inputs=PROMPT, **options):
    return target.generate(inputs, **{"max_new_tokens": LENGTH, "do_sample": False, **options})


class Recent(LogitsProcessor):
    """A processor of the user's own: the token three places back becomes impossible."""

    def __call__(self, input_ids, scores):
        return scores.index_fill(-1, input_ids[0, -3:-2], -torch.inf)


class Until(StoppingCriteria):
    """A criterion of the user's own, called once for every token."""

    def __init__(self, token_id):
        self.token_id, self.lengths = token_id, []

    def __call__(self, input_ids, scores, **options):
        self.lengths.append(input_ids.shape[1])
        return torch.tensor([int(input_ids[0, -1]) == self.token_id])


def allowed(batch, input_ids):
    return [1, 39, 7, 20, int(input_ids[-1]) % 64]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[57, 5], [12]]},
        {"min_new_tokens": 25},
        {"min_length": 20},
        {"suppress_tokens": [44, 39]},
        {"begin_suppress_tokens": [7]},
        {"forced_eos_token_id": 0},
        {"forced_bos_token_id": 11},
        {"sequence_bias": [[[9], 6.0]]},
        {"exponential_decay_length_penalty": (4, 1.2)},
        {"prefix_allowed_tokens_fn": allowed},
        {"logits_processor": [Recent()]},
        {"watermarking_config": WatermarkingConfig(bias=3.0)},
        {"renormalize_logits": True, "remove_invalid_values": True},
        {"max_new_tokens": 1},
        {"max_new_tokens": None, "max_length": 12},
        {"eos_token_id": [33, 45, 12]},
        {"cache_implementation": "static"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_greedy_text_is_the_targets_under_every_option(target, draft, options):
    assert ours(target, draft, **options).tolist() == theirs(target, **options).tolist()


@pytest.mark.parametrize(
    ("length", "max_new_tokens"),
    [(1, 60), (250, 7), (256, 1)],
    ids=["one token", "to the end of the context", "a full context"],
)
def test_extreme_prompts_are_continued_as_by_the_target(target, draft, length, max_new_tokens):
    prompt = torch.randint(1, 64, (1, length), generator=torch.Generator().manual_seed(1))
    found = ours(target, draft, prompt, max_new_tokens=max_new_tokens)
    assert found.tolist() == theirs(target, prompt, max_new_tokens=max_new_tokens).tolist()


def test_left_padding_is_hidden_from_the_models_and_shown_to_the_processors(target, draft):
    padded = torch.cat([torch.full((1, 4), 7), PROMPT], dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 5])
    for options in ({}, {"repetition_penalty": 3.0}):
        options["attention_mask"] = mask
        assert ours(target, draft, padded, **options).tolist() == theirs(target, padded, **options).tolist()
    with pytest.raises(DslError, match="attention mask other than left padding"):
        ours(target, draft, padded, attention_mask=mask.flip(1))


@pytest.mark.parametrize("num_padding", [0, 2])
def test_a_prompt_of_embeddings_is_continued_as_by_the_target(target, draft, num_padding):
    """The target reads the embeddings, the draft the ids beside them; nothing says that they belong together."""
    soft = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0] * num_padding + [1] * (5 - num_padding)])
    written = target.get_input_embeddings()(PROMPT).detach()
    for embeddings in (soft, written):
        options = {"inputs_embeds": embeddings, "attention_mask": mask}
        expected = theirs(target, **options, return_dict_in_generate=True, output_scores=True)
        found = ours(target, draft, **options, return_dict_in_generate=True, output_scores=True)
        assert found.sequences.tolist() == expected.sequences.tolist()
        torch.testing.assert_close(torch.cat(found.scores), torch.cat(expected.scores), rtol=1e-4, atol=1e-4)
    assert ours(target, draft, inputs_embeds=soft).tolist() != ours(target, draft).tolist()


def test_scores_and_logits_are_those_of_plain_generation(target, draft):
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "repetition_penalty": 1.4}
    found, expected = ours(target, draft, **options), theirs(target, **options)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for name in ("scores", "logits"):
        assert len(found[name]) == len(expected[name])
        torch.testing.assert_close(torch.cat(found[name]), torch.cat(expected[name]), rtol=0, atol=1e-4)
    assert ours(target, draft, return_dict_in_generate=True).scores is None


def test_a_criterion_is_asked_behind_every_token_and_obeyed_inside_a_block(target, draft):
    stop = theirs(target)[0, PROMPT.shape[1] + 6].item()
    expected, found = Until(stop), Until(stop)
    text = theirs(target, stopping_criteria=[expected])
    assert ours(target, target, policy="static:7", stopping_criteria=[found]).tolist() == text.tolist()
    assert found.lengths == expected.lengths
    assert ours(target, draft, stopping_criteria=[MaxTimeCriteria(0.0)]).shape[1] == PROMPT.shape[1] + 1


def test_stop_strings_end_the_text_where_they_end_the_targets(target, draft):
    tokenizer = make_tokenizer()
    text = theirs(target)
    stop = tokenizer.decode(text[0, -9:-6].tolist())
    options = {"stopping_criteria": [StopStringCriteria(tokenizer, [stop])]}
    found = ours(target, draft, **options)
    assert found.tolist() == theirs(target, **options).tolist()
    assert found.shape[1] < text.shape[1]


def test_an_end_of_text_criterion_of_the_users_own_is_heeded(target, draft):
    options = {"stopping_criteria": [EosTokenCriteria([theirs(target)[0, -4].item()])]}
    assert ours(target, draft, **options).tolist() == theirs(target, **options).tolist()


def test_a_streamer_gets_the_prompt_then_the_text_then_the_end(target, draft):
    class Recorder(BaseStreamer):
        pieces, ended = (), False

        def put(self, value):
            self.pieces += (*value.flatten().tolist(),)

        def end(self):
            self.ended = True

    streamer = Recorder()
    text = ours(target, draft, streamer=streamer, stopping_criteria=[Until(theirs(target)[0, 20].item())])
    assert list(streamer.pieces) == text[0].tolist()
    assert streamer.ended


def test_the_shipped_predictor_drives_generation(target, draft, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = (describe_model(target, ""), describe_model(draft, ""))
    folder = tmp_path / "dsl"
    folder.mkdir()
    write_predictor(folder, Pair(target, draft, make_tokenizer(), *names))
    assert ours(target, draft, policy="learned", predictor=folder).tolist() == theirs(target).tolist()
    with pytest.raises(DslError, match="was trained for target"):
        ours(make_model(seed=0, vocab_size=70), draft, policy="learned", predictor=folder)
    with pytest.raises(DslError, match="no predictor in its dsl folder"):
        ours(target, draft, policy="learned")


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_k": 10, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 0, "min_p": 0.05, "repetition_penalty": 1.5},
    ],
    ids=["top-k, top-p", "min-p, penalty"],
)
def test_sampled_texts_follow_the_processed_law_of_the_target(options):
    """Joint law of the first 3 of 800 texts against the exact one, false-alarm rate 1e-4 each."""
    target = make_model(seed=3)
    draft = perturb(target, scale=0.3, seed=4)
    settings = {"do_sample": True, **options}
    processors = target._get_logits_processor(
        target._prepare_generation_config(GenerationConfig(**settings, eos_token_id=0, pad_token_id=0))[0],
        input_ids_seq_length=5,
        logits_processor=[],
    )

    class Processed(Sampling):
        """The law that transformers' own list of processors defines."""

    runner = _Lawful(CachedModel(target), processors)
    law = exact_distribution(runner, PROMPT[0].tolist(), Processed(1.0), [0], 3, 800)
    torch.manual_seed(0)
    drawn = [ours(target, draft, **settings, max_new_tokens=3)[0, PROMPT.shape[1] :].tolist() for _ in range(800)]
    assert fit(law, drawn, 1e-4).p_value > 1e-4


class _Lawful(CachedModel):
    """Logits behind every processor and warper, row by row as transformers applies them."""

    def __init__(self, runner, processors):
        self.runner, self.processors = runner, processors

    def reset(self):
        self.runner.reset()

    def logits(self, token_ids, keep):
        return self.processors(torch.tensor([token_ids]), self.runner.logits(token_ids, keep))


def test_the_global_seed_repeats_a_sampled_text(target, draft):
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(ours(target, draft, do_sample=True).tolist())
    assert texts[0] == texts[1] != texts[2]


def test_warpers_are_told_from_processors_by_their_place(target):
    def prepare(**settings):
        config = GenerationConfig(do_sample=True, **settings)
        return target._get_logits_processor(config, input_ids_seq_length=1, logits_processor=[Recent()])

    own, sampling = split_processors(prepare(temperature=0.5, top_p=0.9, repetition_penalty=1.2), True)
    assert [type(processor).__name__ for processor in own] == ["RepetitionPenaltyLogitsProcessor", "Recent"]
    assert sampling.temperature == 0.5
    assert [type(warper).__name__ for warper in sampling.warpers] == ["TopPLogitsWarper"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 2}, "beam_search"),
        ({"num_beams": 2, "do_sample": True}, "beam_sample"),
        ({"do_sample": True, "num_return_sequences": 2}, "num_return_sequences=2"),
        ({"inputs": PROMPT.repeat(2, 1)}, "batch of 2"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
        ({"past_key_values": DynamicCache()}, "past_key_values of an earlier call"),
        (
            {"inputs": None, "inputs_embeds": torch.zeros(1, 3, 32)},
            r"cannot honour inputs_embeds of 3 positions beside 0 input_ids; the draft cannot read the target's "
            r"embeddings; pass an id for each position beside them",
        ),
        ({"inputs_embeds": torch.zeros(1, 4, 32)}, "inputs_embeds of 4 positions beside 5 input_ids"),
        ({"position_ids": torch.tensor([[3, 4, 5, 6, 7]])}, "position_ids other than"),
        ({"prompt_lookup_num_tokens": 3}, "assisted_generation"),
        ({"prefill_chunk_size": 4}, "prefill_chunk_size=4"),
        ({"guidance_scale": 2.0}, "UnbatchedClassifierFreeGuidanceLogitsProcessor"),
        ({"max_new_tokens": 400}, r"405 tokens does not fit the target's context of 256; set max_new_tokens to 252"),
        (
            {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2], ngram_len=3), "do_sample": True},
            "SynthIDTextWatermarkLogitsProcessor",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_honoured_is_refused_by_name(target, draft, options, named):
    with pytest.raises(DslError, match=named):
        ours(target, draft, **options)


def test_a_draft_is_asked_for_by_its_name(target):
    with pytest.raises(DslError, match=r"pass draft_model= \(not assistant_model=\)"):
        target.generate(PROMPT, custom_generate=dsl_train.hf.decode, max_new_tokens=3)


def test_vocabularies_padded_differently_are_one(target):
    narrow, wide = make_model(seed=0, vocab_size=60), make_model(seed=0, vocab_size=70)
    for other in (narrow, wide):
        assert ours(target, other).tolist() == theirs(target).tolist()
    with pytest.raises(DslError, match="64 and 2000 tokens"):
        ours(target, make_model(seed=0, vocab_size=2000))


def test_the_models_are_left_as_they_were(target, draft):
    before = [copy.deepcopy(model.generation_config.to_dict()) for model in (target, draft)]
    ours(target, draft, repetition_penalty=1.2)
    assert [model.generation_config.to_dict() for model in (target, draft)] == before


def test_blocks_are_judged_as_a_whole_unless_told_otherwise(target, draft):
    texts = {}
    for name in ("block", "token", None):
        torch.manual_seed(4)
        options = {"verification": name} if name else {}
        texts[name] = ours(target, draft, do_sample=True, temperature=0.9, policy="static:4", **options).tolist()
    assert texts[None] == texts["block"] != texts["token"]
    with pytest.raises(DslError, match="'blok'; choose one of block, token"):
        ours(target, draft, do_sample=True, verification="blok")
