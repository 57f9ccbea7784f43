"""The draft's own temperature: used where it is known, estimated without drawing, the same in training and service."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from collecting import arguments, make_config, make_pair
from tiny_traces import make_traces

from dsl_train.api.own_settings import under_own_settings
from dsl_train.api.serving import choose_policy
from dsl_train.base.policy import Needs
from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.base.schema import ROW_COLUMNS
from dsl_train.cli.collect import main
from dsl_train.cli.train import main as train_main
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.draft_temperature import RATIOS, expected_acceptance, mean_acceptances
from dsl_train.collect.hindsight import HindsightCollector
from dsl_train.collect.oracle import OracleCollector
from dsl_train.collect.shards import collect
from dsl_train.collect.text import Request
from dsl_train.hf.assisted_text import _AtLeastOne
from dsl_train.loop.drafter import Drafter, as_drafted
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.loop.text import Text, view_for
from dsl_train.pair.loading import load_pair
from dsl_train.policies.capped import Capped
from dsl_train.policies.learned import LearnedPolicy
from dsl_train.policies.rules import StaticPolicy
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel
from dsl_train.runners.processed import ProcessedModel
from dsl_train.traces.decisions import build
from dsl_train.traces.store import Traces, TraceSequence, open_traces
from dsl_train.vllm.settings import check_drafting

PROMPT = (7, 8, 9, 10)


class Halved(StaticPolicy):
    """Trained for a draft at half the temperature."""

    def draft_temperature(self, temperature):
        return temperature / 2


@pytest.fixture(scope="module")
def pair(tiny_target, tiny_draft):
    return make_pair(tiny_target, tiny_draft)


@pytest.mark.parametrize(
    ("policy", "sampling", "expected"),
    [
        (StaticPolicy(2), Sampling(0.8), 0.8),
        (StaticPolicy(2), Sampling(0.8, draft_temperature=0.5), 0.5),
        (Halved(2), Sampling(0.8), 0.4),
        (Halved(2), Sampling(0.8, draft_temperature=0.5), 0.5),
    ],
)
def test_the_draft_draws_at_the_temperature_given_or_trained_for(pair, policy, sampling, expected):
    model = CachedModel(pair.draft)
    view = view_for(policy, PROMPT, sampling)
    text = Text.begin(PROMPT, 8, model.context, frozenset(), torch.Generator().manual_seed(0), view)
    block = Drafter(model, policy, sampling).draft_block(text, 2)
    model.reset()
    with torch.inference_mode():
        logits = model.logits([*PROMPT, block.token_ids[0]], keep=2)
    torch.testing.assert_close(block.probs, (logits / expected).softmax(-1))


class Recorder(StaticPolicy):
    """Keeps the vectors it was shown, by where it was shown them: the round's start and what was drafted."""

    needs: Needs = "features"

    def __init__(self):
        super().__init__(2)
        self.seen, self.last = {}, ()

    def wants_another(self, step):
        self.last = (*self.last, step.draft.token_id) if step.position else ()
        self.seen[(step.start, *self.last)] = step.features
        return super().wants_another(step)

    def draft_temperature(self, temperature):
        return 0.5


def vectors_of_traces(pair, sampling, response):
    """The same of traces of one text."""
    collector = HindsightCollector(pair, CollectConfig("target", "draft", "output", "prompts"))
    (text,) = collector.collect([Request(PROMPT, 0, sampling, response)])
    tokens = (np.array(PROMPT), np.array(response))
    sequence = TraceSequence(0, "prompt", *tokens, sampling.temperature, 0, 1.0, text.finish_reason)
    rows = {name: text.rows.get(name, np.zeros(len(text.rows["index"]), np.int64)) for name in ROW_COLUMNS}
    decisions = build(Traces(rows, (sequence,), ()), max_lookahead=2)
    found = {}
    for i in range(len(decisions)):
        drafted = (int(decisions.drafted("token_id")[i]),) if decisions.position[i] else ()
        found[(int(decisions.start[i]), *drafted)] = decisions.features[i]
    return found


def test_features_are_those_of_traces_that_were_drafted_at_the_same_temperature(pair):
    policy = Recorder()
    models = CachedModel(pair.target), CachedModel(pair.draft)
    engine = SpeculativeEngine(*models, policy, Sampling(0.9), pair.eos_token_ids)
    response = engine.generate(PROMPT, 60, seed=5).token_ids
    same, other = (vectors_of_traces(pair, s, response) for s in (Sampling(0.9, draft_temperature=0.5), Sampling(0.9)))
    shared = [place for place in policy.seen if place in same]
    assert {len(place) for place in shared} == {1, 2}
    for place in shared:
        np.testing.assert_allclose(policy.seen[place], same[place], rtol=0, atol=2e-5)
    assert max(np.abs(policy.seen[place] - other[place]).max() for place in shared if place in other) > 0.05


def test_expected_acceptance_is_the_sum_of_the_smaller_probabilities():
    target, draft = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.6, 0.2]])
    assert expected_acceptance(Sampling(1.0), target.log(), draft.log()).tolist() == pytest.approx([0.7])
    squared = draft**2 / (draft**2).sum()
    found = expected_acceptance(Sampling(1.0, draft_temperature=0.5), target.log(), draft.log())
    assert found.tolist() == pytest.approx([float(torch.minimum(target, squared).sum())])


def test_mean_acceptances_are_those_of_rows_collected_at_each_temperature(pair):
    """`accept_prob` of the collector is the same sum at the same places."""
    asked = [Request(PROMPT[:n], n, Sampling(0.8)) for n in (1, 2, 4)]
    found = mean_acceptances(pair, asked, max_new_tokens=20, batch_size=2, ratios=(0.5, 1.0))
    for ratio, mean in found.items():
        sampling = Sampling(0.8, draft_temperature=0.8 * ratio)
        config = CollectConfig("target", "draft", "output", "prompts", max_new_tokens=20, tail_length=0)
        requests = [dataclasses.replace(request, sampling=sampling) for request in asked]
        rows = [text.rows for text in HindsightCollector(pair, config).collect(requests)]
        probs = np.concatenate([row["accept_prob"][row["depth"] == 0] for row in rows])
        assert mean == pytest.approx(float(probs.mean()), abs=1e-5)
    assert found[0.5] != pytest.approx(found[1.0], abs=1e-3)


def test_auto_estimates_once_records_it_and_drafts_with_it(pair_folders, tmp_path):
    config = make_config(pair_folders, tmp_path / "traces", temperature=0.8, draft_temperature="auto")
    assert main(arguments(config)) == 0
    traces = open_traces([tmp_path / "traces"])
    drawn = traces.manifests[0]["draft_temperature"]["0.8"]
    assert round(drawn / 0.8, 2) in RATIOS
    assert build(traces, 4).draft_temperatures == {"target": [0.8], "draft": [drawn]}
    given = dataclasses.replace(config, output=str(tmp_path / "given"), draft_temperature=drawn)
    collect(given)
    same = open_traces([tmp_path / "given"])
    np.testing.assert_array_equal(traces.rows["token_id"], same.rows["token_id"])
    np.testing.assert_array_equal(traces.rows["entropy"], same.rows["entropy"])
    for file in ("manifest.json", "rows/part-00001.parquet", "sequences/part-00001.parquet"):
        (tmp_path / "traces" / file).unlink()
    (tmp_path / "traces" / "draft_temperature.json").write_text(json.dumps({"0.8": 0.1}))  # no second estimate
    collect(config)
    assert open_traces([tmp_path / "traces"]).manifests[0]["draft_temperature"] == {"0.8": 0.1}


def test_both_collectors_draft_at_the_temperature_asked_for(pair):
    """A draft that is all but greedy drafts its most likely token."""
    config = CollectConfig("target", "draft", "output", "prompts", max_new_tokens=20)
    request = Request(PROMPT, 3, Sampling(0.9, draft_temperature=1e-3))
    for collector in (OracleCollector, HindsightCollector):
        (text,) = collector(pair, config).collect([request])
        assert text.rows["log_prob_1"].max() == 0.0
        np.testing.assert_allclose(text.rows["token_log_prob"], text.rows["log_prob_1"], atol=1e-3)


@pytest.mark.parametrize("collector", [OracleCollector, HindsightCollector])
def test_a_greedy_draft_proposes_its_most_likely_token_and_is_accepted_with_its_probability(pair, collector):
    config = CollectConfig("target", "draft", "output", "prompts", max_new_tokens=40)
    law = Sampling(0.4, top_k=20, draft_temperature=0.0)
    requests = [Request((*PROMPT, i), i, law) for i in range(1, 9)]
    num_accepted = 0
    for request, text in zip(requests, collector(pair, config).collect(requests), strict=True):
        tokens, rows = [*request.prompt_token_ids, *text.response_token_ids], text.rows
        with torch.inference_mode():
            draft, target = (model(torch.tensor([tokens])).logits[0] for model in (pair.draft, pair.target))
        choices, target_probs = draft.argmax(-1), law.probs(target)
        on_text = rows["depth"] == 0
        for i in np.flatnonzero(on_text):
            place, drafted = rows["index"][i] - 1, rows["token_id"][i]
            assert drafted == choices[place]
            assert rows["accepted"][i] == (drafted == tokens[place + 1]) == rows["agreement"][i]
            assert rows["accept_prob"][i] == pytest.approx(float(target_probs[place, drafted]), abs=1e-4)
            assert rows["accept_ratio"][i] == pytest.approx(float(target_probs[place, drafted]), abs=1e-4)
        num_accepted += int(rows["accepted"].sum())
        best = draft.log_softmax(-1).amax(-1).numpy()  # the draft as it is, at no temperature
        np.testing.assert_allclose(rows["log_prob_1"][on_text], best[rows["index"][on_text] - 1], atol=1e-4)
    assert num_accepted > 5


class Greedy(Recorder):
    """Trained for a draft that proposes its most likely token."""

    def draft_temperature(self, temperature):
        return 0.0


def test_our_loop_drafts_greedily_for_whom_was_trained_so_and_shows_the_same_features(pair):
    policy, sampling = Greedy(), Sampling(0.4)
    engine = SpeculativeEngine(CachedModel(pair.target), CachedModel(pair.draft), policy, sampling, pair.eos_token_ids)
    num_shared = 0
    for seed in range(8):
        policy.seen = {}
        response = engine.generate(PROMPT, 60, seed=seed).token_ids
        traced = vectors_of_traces(pair, dataclasses.replace(sampling, draft_temperature=0.0), response)
        for place in [place for place in policy.seen if place in traced]:
            np.testing.assert_allclose(policy.seen[place], traced[place], rtol=0, atol=2e-5)
            num_shared += len(place) > 1
    assert num_shared > 10


def test_a_predictor_says_how_its_draft_chose_and_who_drafts_otherwise_is_warned(pair_folders, tmp_path, caplog):
    config = make_config(pair_folders, tmp_path / "greedy", temperature=0.8, draft_sampling="greedy", num_prompts=12)
    collect(config)
    assert train_main(["--traces", config.output, "--output", str(tmp_path / "dsl"), "--epochs", "1"]) == 0
    predictor = Predictor.load(tmp_path / "dsl")
    assert predictor.draft_sampling == "greedy"
    assert "of a draft that proposes its most likely token" in (tmp_path / "dsl" / "README.md").read_text()
    assert as_drafted(Sampling(0.5), LearnedPolicy(predictor, 0.1)).greedy
    caplog.clear()
    caplog.set_level("WARNING")
    check_drafting(predictor, "greedy")
    assert not caplog.messages
    check_drafting(predictor, "probabilistic")
    assert "set draft_sample_method to greedy in --speculative-config" in caplog.text
    pair = load_pair(pair_folders.target, pair_folders.draft, "float32", "cpu")
    choose_policy(pair, "learned", predictor, threshold=0.5)
    assert "it does so here too, and sampled texts keep their law" in caplog.text
    collect(dataclasses.replace(config, output=str(tmp_path / "drawn"), temperature=0.7, draft_sampling=None))
    assert build(open_traces([tmp_path / "drawn"])).draft_sampling == "probabilistic"
    assert build(make_traces("arar")).draft_sampling is None
    with pytest.raises(DslError, match=r"texts at temperature 0.8 were drafted greedily and others were not"):
        _ = build(open_traces([tmp_path / "greedy", tmp_path / "drawn"])).draft_sampling


def test_texts_of_one_temperature_drafted_at_two_are_no_training_set():
    traces = make_traces("arar", "raar")
    sequences = tuple(dataclasses.replace(sequence, temperature=0.8) for sequence in traces.sequences)
    counted = {"counts": {"num_sequences": 1}}
    manifests = ({**counted, "draft_temperature": {"0.8": 0.7}}, counted)
    with pytest.raises(DslError, match=r"temperature 0.8 were drafted at 0.7 and at 0.8; collect them all"):
        _ = build(Traces(traces.rows, sequences, manifests)).draft_temperatures
    assert build(traces).draft_temperatures == {"target": [1.0], "draft": [1.0]}  # greedy


def test_a_predictor_keeps_the_proportion_between_and_beyond_its_temperatures():
    reference = Path(__file__).parent.parent / "checkpoints" / "reference" / "draft" / "dsl"
    plain = Predictor.load(reference)
    assert plain.draft_temperature(0.7) == 0.7
    drawn = {"target": [0.5, 1.0], "draft": [0.5, 0.8]}
    trained = Predictor(plain.session, {**plain.config, "draft_temperature": drawn}, reference)
    found = [trained.draft_temperature(temperature) for temperature in (0.25, 0.5, 0.75, 1.0, 2.0)]
    assert found == pytest.approx([0.25, 0.5, 0.75 * 0.9, 0.8, 1.6])
    learned = LearnedPolicy(trained, 0.1)
    for policy in (learned, Capped(learned, 2), _AtLeastOne(learned)):
        assert as_drafted(Sampling(1.0, top_k=5), policy) == Sampling(0.8, top_k=5)


def test_the_targets_own_settings_leave_the_drafts_temperature(pair):
    target = copy.deepcopy(pair.target)
    target.generation_config.repetition_penalty = 1.3
    runners = CachedModel(target), CachedModel(pair.draft)
    asked = Sampling(0.9, draft_temperature=0.5)
    _, draft, law = under_own_settings(dataclasses.replace(pair, target=target), runners, PROMPT, asked, 10)
    assert isinstance(draft, ProcessedModel)
    assert (law.temperature, law.of_draft.temperature) == (0.9, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draft_temperature": "auto"}, "a greedy draft draws nothing"),
        ({"temperature": 0.8, "draft_temperature": 0.0}, "draft_temperature must be positive, or auto, not 0.0"),
    ],
)
def test_temperatures_that_cannot_be_are_refused(pair_folders, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(pair_folders, tmp_path, **changes)


def test_shards_do_not_estimate_each_for_itself(pair_folders, tmp_path):
    changes = {"temperature": 0.8, "draft_temperature": "auto", "num_shards": 2, "shard_index": 0}
    with pytest.raises(DslError, match="each of which would find another"):
        collect(make_config(pair_folders, tmp_path, **changes))
