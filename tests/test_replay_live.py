"""Replay against the live loop on a tiny pair, greedy, in float32."""

import math

import numpy as np
import pytest
from conftest import VOCAB_SIZE, make_tokenizer

from dsl_train.base.cost import StopRule
from dsl_train.base.policy import Needs, Policy
from dsl_train.base.records import DraftStep
from dsl_train.base.sampling import Sampling
from dsl_train.base.schema import ROW_COLUMNS
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.oracle import OracleCollector
from dsl_train.collect.text import Request
from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.pair.identity import describe_model
from dsl_train.pair.loading import Pair
from dsl_train.policies.learned import LearnedPolicy
from dsl_train.policies.registry import make_policy
from dsl_train.replay.rounds import replay_policy, replay_survival
from dsl_train.runners.cached import CachedModel
from dsl_train.traces.decisions import build
from dsl_train.traces.store import Traces, TraceSequence


class Recorder(Policy):
    """Goes by a feature, and keeps the vectors it was shown."""

    name = "recorder"
    needs: Needs = "features"
    max_lookahead = 6

    def __init__(self) -> None:
        self.vectors: list[np.ndarray] = []

    def wants_another(self, step: DraftStep) -> bool:
        self.vectors.append(step.features)
        return step.position == 0 or bool(step.features[FEATURE_NAMES.index("top_prob")] > 0.25)


@pytest.fixture(scope="module")
def live_pair(tiny_target, tiny_draft):
    identities = [describe_model(model, name) for model, name in ((tiny_target, "target"), (tiny_draft, "draft"))]
    return Pair(tiny_target, tiny_draft, make_tokenizer(), *identities)


@pytest.fixture(scope="module")
def live_decisions(live_pair):
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(2, VOCAB_SIZE, 12).tolist()) for _ in range(14)]
    shared = {"target": "T", "draft": "D", "prompts": "P", "output": "O", "max_new_tokens": 40, "tail_length": 20}
    collector = OracleCollector(live_pair, CollectConfig(**shared))
    texts = [collector.collect_text(Request(prompt, 0, Sampling())) for prompt in prompts]
    sequences, rows = [], []
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        tokens = (np.array(prompt), np.array(text.response_token_ids))
        sequences.append(TraceSequence(i, f"prompt-{i}", *tokens, 0.0, 0, 1.0, text.finish_reason))
        rows.append({**text.rows, "sequence_id": np.full(len(text.rows["index"]), i)})
    manifest = {"counts": {"num_sequences": len(texts)}, "sampling": {"max_new_tokens": 40}}
    joined = {name: np.concatenate([part[name] for part in rows]) for name in ROW_COLUMNS}
    assert {sequence.finish_reason for sequence in sequences} == {"eos", "length"}
    return build(Traces(joined, tuple(sequences), (manifest,)))


def run_live(pair, decisions, policy):
    engine = SpeculativeEngine(
        CachedModel(pair.target), CachedModel(pair.draft), policy, eos_token_ids=pair.eos_token_ids
    )
    prompts = [sequence.prompt_token_ids.tolist() for sequence in decisions.sequences]
    return tuple(engine.generate(prompt, max_new_tokens=40).rounds for prompt in prompts)


@pytest.mark.parametrize(
    "spec",
    ["static:0", "static:5", "heuristic", "random:0.7", "confidence:0.3,12", "confidence-roc", "cumulative", "svip"],
)
def test_greedy_replay_gives_the_rounds_of_the_live_loop_one_by_one(live_pair, live_decisions, spec):
    replayed = replay_policy(live_decisions, make_policy(spec))
    assert replayed.rounds == run_live(live_pair, live_decisions, make_policy(spec))
    assert replayed.num_rounds > 0
    assert not replayed.exhausted.any()


def test_a_policy_on_features_is_shown_live_the_vectors_of_the_traces(live_pair, live_decisions):
    live, replayed = Recorder(), Recorder()
    assert run_live(live_pair, live_decisions, live) == replay_policy(live_decisions, replayed).rounds
    np.testing.assert_allclose(np.array(live.vectors), np.array(replayed.vectors), rtol=0, atol=2e-5)


class LongTextPredictor:
    """Survival grows with the text; between drafts, how sure the draft is."""

    max_lookahead = 6

    def survival(self, vector: np.ndarray) -> float:
        return float(self.survival_batch(vector[None])[0])

    def survival_batch(self, vectors: np.ndarray) -> np.ndarray:
        length, draft, position = (
            vectors[:, FEATURE_NAMES.index(name)] for name in ("log_text_length", "top_prob", "position")
        )
        return np.where(position == 0, length / 10, draft)


def test_the_learned_rule_with_two_thresholds_makes_live_the_rounds_of_the_vectorised_replay(live_pair, live_decisions):
    predictor, decisions = LongTextPredictor(), live_decisions
    survival = predictor.survival_batch(decisions.features)
    first, another = (
        float(np.quantile(survival[decisions.position == position], share)) for position, share in ((0, 0.2), (1, 0.5))
    )  # the first seldom enough that the rule is never left alone
    rule = StopRule((first + 1e-4, another + 1e-4))  # away from values that rounding could carry across
    replayed = replay_survival(decisions, survival, rule)
    rounds = run_live(live_pair, decisions, LearnedPolicy(predictor, rule, decisions.max_lookahead))
    assert [(r.start, len(r.drafted), r.num_accepted) for text in rounds for r in text] == list(
        zip(replayed.start.tolist(), replayed.num_drafted.tolist(), replayed.num_accepted.tolist(), strict=True)
    )
    assert 0 < (replayed.num_drafted == 0).sum() < replayed.num_rounds


class Glimpses(Recorder):
    """The same rule, its vectors looked at now and then only."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[int, int, int], np.ndarray] = {}
        self.num_texts = self.num_steps = 0

    def reset(self) -> None:
        self.num_texts += 1

    def wants_another(self, step: DraftStep) -> bool:
        self.num_steps += 1
        if self.num_steps % 3 == 0:
            self.seen[self.num_texts, step.start, step.position] = step.features
        return step.position == 0 or math.exp(step.draft.log_probs[0]) > 0.25


def test_features_read_now_and_then_are_those_of_the_traces(live_pair, live_decisions):
    live, replayed = Glimpses(), Glimpses()
    assert run_live(live_pair, live_decisions, live) == replay_policy(live_decisions, replayed).rounds
    assert live.seen.keys() == replayed.seen.keys()
    for place, vector in live.seen.items():
        np.testing.assert_allclose(vector, replayed.seen[place], rtol=0, atol=2e-5)


def test_the_corrected_rule_makes_live_the_rounds_of_its_replay(live_pair, live_decisions):
    rule = StopRule.of(0.02)
    live, replayed = (LearnedPolicy(LongTextPredictor(), rule, corrected=True) for _ in range(2))
    expected = replay_policy(live_decisions, replayed)
    assert run_live(live_pair, live_decisions, live) == expected.rounds
    assert replayed.rule != rule
    assert live.rule.another == pytest.approx(replayed.rule.another, rel=1e-3)
    assert 0 < expected.mean_lookahead < LongTextPredictor.max_lookahead
