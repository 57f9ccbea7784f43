"""`target.generate(..., assistant_model=dsl_train.attach(draft))` against `target.generate(...)`."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import make_model, make_tokenizer, perturb, seen
from families.zoo import REFUSED
from tiny_predictor import write_predictor
from transformers.generation.streamers import BaseStreamer

import dsl_train
from dsl_train.base.policy import Policy
from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.bench.distribution import exact_distribution, fit
from dsl_train.features.entries import FEATURES
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.pair.identity import describe_model
from dsl_train.pair.loading import Pair
from dsl_train.policies.registry import make_policy
from dsl_train.runners.cached import CachedModel

PROMPT = torch.tensor([[50, 27, 63, 6, 17]])


@pytest.fixture(scope="module")
def target():
    return make_model(seed=0)


@pytest.fixture(scope="module")
def draft(target):
    return perturb(target, scale=0.15, seed=1)


def generate(target, inputs=PROMPT, **options):
    return target.generate(inputs, **{"max_new_tokens": 40, "do_sample": False, **options})


class Watched(Policy):
    """Another policy, and what it was shown."""

    def __init__(self, spec="static:3"):
        self.policy = make_policy(spec)
        self.name, self.needs, self.max_lookahead = "watched", "features", self.policy.max_lookahead
        self.steps, self.rounds = [], []

    def wants_another(self, step):
        self.steps.append(seen(step))
        return self.policy.wants_another(step)

    def observe(self, finished):
        self.rounds.append(finished)
        self.policy.observe(finished)

    def reset(self):
        self.policy.reset()


@pytest.mark.parametrize("policy", ["static:4", "static:0", "heuristic", "random:0.7,1,7"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.4},
        {"min_new_tokens": 30, "no_repeat_ngram_size": 2},
        {"eos_token_id": [33, 45, 12], "bad_words_ids": [[57, 5], [12]]},
        {"stop_strings": ["c", "xy"], "tokenizer": make_tokenizer()},
        {"max_new_tokens": 1},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_greedy_text_is_the_targets(target, draft, policy, options):
    assistant = dsl_train.attach(draft, policy=policy)
    for _ in range(2):  # one object for any number of texts
        found = generate(target, assistant_model=assistant, **options)
        assert found.tolist() == generate(target, **options).tolist()


@pytest.mark.parametrize("length", [1, 216, 250, 256])
def test_extreme_prompts_are_continued_as_by_the_target(target, draft, length):
    prompt = torch.randint(1, 64, (1, length), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": min(40, 257 - length)}
    assistant = dsl_train.attach(draft, policy=Watched("static:7"))
    assert generate(target, prompt, assistant_model=assistant, **options).tolist() == (
        generate(target, prompt, **options).tolist()
    )


def test_scores_and_streamed_text_are_those_of_plain_generation(target, draft):
    class Recorder(BaseStreamer):
        pieces, ended = (), False

        def put(self, value):
            self.pieces += (*value.flatten().tolist(),)

        def end(self):
            self.ended = True

    streamer, wanted = Recorder(), {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    found = generate(target, assistant_model=dsl_train.attach(draft, policy=Watched()), streamer=streamer, **wanted)
    expected = generate(target, **wanted)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert list(streamer.pieces) == found.sequences[0].tolist()
    assert streamer.ended
    for name in ("scores", "logits"):
        torch.testing.assert_close(torch.cat(found[name]), torch.cat(expected[name]), rtol=0, atol=1e-4)


def test_a_draft_of_short_context_goes_on_by_chance(target):
    short = make_model(seed=0)
    short.config.max_position_embeddings = 16
    assistant = dsl_train.attach(short, policy=Watched("static:4"))
    assert generate(target, assistant_model=assistant).tolist() == generate(target).tolist()


def test_left_padding_is_no_part_of_the_text(target, draft):
    padded = torch.cat([torch.full((1, 4), 7), PROMPT], dim=1)
    options = {"attention_mask": torch.tensor([[0] * 4 + [1] * 5]), "repetition_penalty": 1.3}
    found = generate(target, padded, assistant_model=dsl_train.attach(draft, policy=Watched()), **options)
    assert found.tolist() == generate(target, padded, **options).tolist()


def test_the_policy_sees_the_features_of_our_own_loop(target, draft):
    """Rounds are cut differently (the stock loop drafts at once), so steps are compared where both have drafted the
    same tokens behind the same text: features depend on nothing else."""
    own, attached = Watched("static:5"), Watched("static:5")
    engine = SpeculativeEngine(CachedModel(target), CachedModel(draft), own, eos_token_ids=[0])
    alone = engine.generate(PROMPT[0].tolist(), 40).token_ids
    text = generate(target, assistant_model=dsl_train.attach(draft, policy=attached))
    assert text[0, PROMPT.shape[1] :].tolist() == list(alone)
    expected = {(step.start, step.position): step.features for step in own.steps if step.position}
    compared = [(step.features, expected.get((step.start, step.position))) for step in attached.steps]
    compared = [(found, wanted) for found, wanted in compared if wanted is not None]
    assert len(compared) > 10
    for found, wanted in compared:
        assert found == pytest.approx(wanted, abs=2e-4)


def test_sampled_agreements_are_those_of_our_own_loop(draft):
    """A target that is certain of its text makes both loops write the same one; what they draft differs, so compared
    are the features that do not depend on it."""
    target, own, attached = make_model(seed=0), Watched("static:2"), Watched("static:2")
    target.lm_head.weight.data *= 1000
    sampling = {"temperature": 0.8, "top_k": 12, "top_p": 0.95}
    engine = SpeculativeEngine(CachedModel(target), CachedModel(draft), own, Sampling(**sampling), [0])
    alone = engine.generate(PROMPT[0].tolist(), 40).token_ids
    torch.manual_seed(0)
    text = generate(target, assistant_model=dsl_train.attach(draft, policy=attached), do_sample=True, **sampling)
    assert text[0, PROMPT.shape[1] :].tolist() == list(alone)
    columns = [
        i
        for i, feature in enumerate(FEATURES)
        if feature.group in ("agreement", "setting") and not feature.name.startswith("copy")
    ]
    expected = {step.start: step.features[columns] for step in own.steps if step.position}
    compared = [step for step in attached.steps if step.position and step.start in expected]
    assert len(compared) > 10
    for step in compared:
        assert step.features[columns] == pytest.approx(expected[step.start], abs=2e-4)


def test_before_the_target_has_spoken_one_token_is_drafted_and_nothing_asked(target, draft):
    policy = Watched("static:7")
    generate(target, assistant_model=dsl_train.attach(draft, policy=policy))
    first = policy.rounds[0]
    assert (first.start, len(first.drafted)) == (PROMPT.shape[1], 1)
    assert all(step.start > PROMPT.shape[1] for step in policy.steps)


def test_rules_that_begin_anew_with_each_block_do_so_in_transformers_loop(target):
    """The product of a block's probabilities is above 1e-9, that of three blocks is not."""
    policy = Watched("cumulative:1e-9,8")
    generate(target, assistant_model=dsl_train.attach(copy.deepcopy(target), policy=policy), max_new_tokens=50)
    assert [len(finished.drafted) for finished in policy.rounds[:5]] == [1, 8, 8, 8, 8]


@pytest.mark.parametrize("ratio", [1.0, 0.0])
def test_sampled_texts_follow_the_targets_law(ratio):
    """Joint law of the first 3 of 500 texts under a hostile policy, false-alarm rate 1e-4; the draft draws, or proposes
    its most likely token."""
    target = make_model(seed=3)
    draft = perturb(target, scale=0.3, seed=4)
    sampling = Sampling(0.8, 12, 0.95)
    law = exact_distribution(CachedModel(target), PROMPT[0].tolist(), sampling, [0], 3, 500)
    policy = StopsOnValue()
    policy.draft_temperature = lambda temperature: ratio * temperature
    assistant = dsl_train.attach(draft, policy=policy)
    options = {"do_sample": True, "temperature": 0.8, "top_k": 12, "top_p": 0.95, "max_new_tokens": 3}
    torch.manual_seed(0)
    texts = [generate(target, assistant_model=assistant, **options)[0, 5:].tolist() for _ in range(500)]
    assert fit(law, texts, 1e-4).p_value > 1e-4


class StopsOnValue(Watched):
    """Hostile: decides by the drafted token's identity."""

    def wants_another(self, step):
        return step.draft is None or step.draft.token_id % 2 == 0


def test_the_global_seed_repeats_a_sampled_text(target, draft):
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        assistant = dsl_train.attach(draft, policy="static:3")
        texts.append(generate(target, assistant_model=assistant, do_sample=True).tolist())
    assert texts[0] == texts[1] != texts[2]


def test_a_predictor_decides_and_one_of_another_pair_is_refused(target, draft, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "dsl"
    folder.mkdir()
    write_predictor(
        folder, Pair(target, draft, make_tokenizer(), describe_model(target, ""), describe_model(draft, ""))
    )
    for threshold in (None, 0.5, 2.0):
        assistant = dsl_train.attach(draft, predictor=folder, threshold=threshold)
        assert generate(target, assistant_model=assistant).tolist() == generate(target).tolist()
    wide = [make_model(seed=0, vocab_size=70) for _ in range(2)]
    with pytest.raises(DslError, match=r"was trained for target  \(vocab_size 64\), but this target"):
        generate(wide[0], assistant_model=dsl_train.attach(wide[1], predictor=folder))


def test_refusals_name_what_is_wrong(target, draft):
    with pytest.raises(DslError, match="no predictor in its dsl folder"):
        dsl_train.attach(draft)
    assistant = dsl_train.attach(draft, policy="static:3")
    with pytest.raises(DslError, match="only as assistant_model= of a target's generate"):
        assistant.generate(PROMPT)
    with pytest.raises(DslError, match="assistant_ensemble_weight mixes the draft into the output"):
        generate(target, assistant_model=assistant, assistant_ensemble_weight=0.5)


def test_the_draft_keeps_its_own_settings(target, draft):
    before = draft.generation_config.to_dict()
    generate(target, assistant_model=dsl_train.attach(draft, policy="heuristic"))
    assert draft.generation_config.to_dict() == before


@pytest.mark.parametrize("policy", ["static:3", "cumulative:0.5,8"])
def test_rules_are_asked_for_every_token_from_the_first(target, draft, policy):
    watched = Watched(policy)
    watched.needs = watched.policy.needs
    watched.max_lookahead = watched.policy.max_lookahead
    generate(target, assistant_model=dsl_train.attach(draft, policy=watched))
    first = [step for step in watched.steps if step[0] == 0]
    assert len(first) >= len(watched.rounds) > 1


def test_a_rule_over_the_whole_block_begins_anew_each_round(target):
    policy = make_policy("cumulative:0.00000001,8")
    lengths = []
    observe = policy.observe
    policy.observe = lambda finished: (lengths.append(len(finished.drafted)), observe(finished))
    generate(target, assistant_model=dsl_train.attach(target, policy=policy))
    assert lengths[:3] == [8, 8, 8]


@pytest.mark.parametrize(("rows", "draft_rows"), [(0, 16), (16, 0)])
def test_a_draft_whose_vocabulary_is_padded_otherwise_needs_no_tokenizers(rows, draft_rows):
    target, draft = make_model(seed=0), make_model(seed=0)
    size = target.config.vocab_size
    for model, more in ((target, rows), (draft, draft_rows)):
        if more:
            model.resize_token_embeddings(size + more, mean_resizing=False)
            with torch.no_grad():
                model.lm_head.weight[size:] = 0
    expected = generate(target).tolist()
    watched = Watched()
    assert generate(target, assistant_model=dsl_train.attach(draft, policy=watched)).tolist() == expected
    assert any(round_.num_accepted for round_ in watched.rounds)
    assert draft.config.vocab_size == size + draft_rows


def test_threads_generate_with_one_attached_draft(target, draft):
    attached = dsl_train.attach(draft, policy="static:3")
    prompts = [(PROMPT + i) % 64 for i in range(8)]
    expected = [generate(target, prompt).tolist() for prompt in prompts]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda prompt: generate(target, prompt, assistant_model=attached).tolist(), prompts))
    assert found == expected


def test_an_attached_draft_is_copied_pickled_and_saved(target, draft, tmp_path):
    attached = dsl_train.attach(draft, policy="static:3")
    expected = generate(target, assistant_model=attached).tolist()
    torch.save(attached, tmp_path / "draft.pt")
    loaded = torch.load(tmp_path / "draft.pt", weights_only=False)
    for other in (copy.copy(attached), copy.deepcopy(attached), pickle.loads(pickle.dumps(attached)), loaded):
        assert generate(target, assistant_model=other).tolist() == expected


def test_a_draft_whose_state_cannot_be_kept_is_refused_when_it_is_attached():
    rwkv = next(family for family in REFUSED if family.model.startswith("Rwkv")).make()
    with pytest.raises(DslError, match=r"cannot be used for speculative decoding: .* in a form of its own"):
        dsl_train.attach(rwkv, policy="static:3")
