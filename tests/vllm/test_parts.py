"""The decision for a batch, its costs, and what is refused, without an engine where none is needed."""

from types import SimpleNamespace

import numpy as np
import pytest
from engines import DRAFT, ROOT, drafting, runner_of

from dsl_train.base.cost import CostProfile, StopRule
from dsl_train.base.records import DslError, Round
from dsl_train.vllm.costs import BatchCosts
from dsl_train.vllm.decision import LearnedTogether
from dsl_train.vllm.plugin import why_left_alone
from dsl_train.vllm.request import RequestText
from dsl_train.vllm.settings import Settings
from dsl_train.vllm.statistics import FILE, Statistics, _Collector

#: A draft step of 2 ms; verifying one more token takes 0.5 ms, one token 10 ms.
PROFILE = CostProfile.of_steps(0.002, [0.010 + 0.0005 * width for width in range(17)])


class Foretold:
    """A predictor whose answers are given."""

    max_lookahead = 16
    draft_sampling = None

    def __init__(self, *survivals: float) -> None:
        self.survivals = survivals

    def survival_batch(self, vectors: np.ndarray) -> np.ndarray:
        return np.array(self.survivals, dtype=np.float32)

    def threshold(self, c_eff: float) -> float:
        return min(1.0, 1.5 * c_eff)


def texts(number: int) -> list[RequestText]:
    made = [RequestText([1, 2, 3], 0.0, 100, frozenset(), with_features=True) for _ in range(number)]
    for text in made:
        text.begin_block(16)
    return made


class Shared(BatchCosts):
    """A fifth of the price of a token is verification, whatever the batch."""

    def verifying_share(self, num_requests: int) -> float:
        return 0.2


def chosen(survivals: list[float], price: float) -> list[bool]:
    """Who of a batch drafts, where a token costs `price` to a request alone in its batch."""
    decision = LearnedTogether(Foretold(*survivals), Shared(PROFILE, Foretold().threshold))
    decision.begin(len(survivals))
    return decision._worth_it(survivals, price)


def test_one_request_goes_by_its_own_threshold():
    assert chosen([0.31], 0.3) == [True]
    assert chosen([0.29], 0.3) == [False]


def test_a_step_of_the_draft_is_paid_by_all_who_take_part():
    # price 0.3 each: 0.06 for verifying, 0.24 for drafting, and 4 * 0.24 = 0.96 for the step
    assert chosen([0.9, 0.9, 0.05, 0.01], 0.3) == [True, True, False, False]  # 0.84 + 0.84 > 0.96
    assert chosen([0.9, 0.1, 0.05, 0.01], 0.3) == [False] * 4  # 0.84 + 0.04 < 0.96
    assert chosen([0.9, 0.2, 0.9, 0.01], 0.3) == [True, True, True, False]  # 0.2 alone would not pay 0.3


def test_given_a_threshold_the_batch_does_not_matter():
    decision, requests = LearnedTogether(Foretold(0.4, 0.2, 0.31), StopRule.of(0.3)), texts(3)
    assert decision.begin(3) == 16
    assert decision.wanted(requests, 0) == [requests[0], requests[2]]
    assert (decision.num_questions, decision.num_stops) == (3, 1)


def test_costs_are_learned_for_each_size():
    costs = BatchCosts(PROFILE, Foretold().threshold)
    assert costs.profile(4).verification(2) == pytest.approx(PROFILE.verification(8))
    for _ in range(40):
        costs.observe(4, num_drafted=8, num_steps=2, draft_seconds=0.1, verify_seconds=0.04)
        costs.observe(4, num_drafted=0, num_steps=0, draft_seconds=None, verify_seconds=0.02)
    assert costs.profile(4).draft_step == pytest.approx(0.05, rel=0.2)
    assert costs.profile(3) is costs.profile(4)
    assert costs.profile(1).draft_step == PROFILE.draft_step
    assert costs.rule(4).first > costs.rule(1).first  # a draft step now takes twice as long as the target's


def test_a_text_keeps_what_the_draft_has_read_and_is_behind_by():
    (text,) = texts(1)
    text.commit([4], 0)
    assert (text.behind, text.unread) == ([4], [1, 2, 3, 4])
    text.begin_block(16)
    text.num_read = 4
    text.agree([1.0])
    for token_id in (5, 6):
        text.draft(token_id, None)
    text.num_read = 5  # the block's last token is not read
    finished = text.commit([5, 6, 7], 2)
    assert finished == Round(4, (5, 6), 2, (5, 6, 7))
    assert (text.num_read, text.unread, text.behind) == (5, [6, 7], [7])
    text.begin_block(16)
    text.draft(8, None)
    text.num_read = 7
    text.commit([9], 1)
    assert (text.num_read, text.unread) == (7, [9])


def test_a_predictor_of_another_pair_is_refused():
    engine = drafting()
    runner = runner_of(engine)
    settings = Settings(predictor=str(ROOT / "checkpoints/smollm2/draft/dsl"))
    with pytest.raises(DslError, match=r"vocab_size 49152.*vocab_size 4096"):
        settings.decision(engine.llm_engine.vllm_config, runner.model, runner.drafter.model)


def test_an_unknown_policy_is_refused():
    with pytest.raises(DslError, match="did you mean 'static'"):
        Settings(policy="statik:3").decision(drafting().llm_engine.vllm_config, None, None)


def test_a_threshold_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("DSL_TRAIN_THRESHOLD", "high")
    with pytest.raises(DslError, match="'high'"):
        Settings.from_environment()


def test_a_draft_without_a_predictor_is_left_to_vllm(tmp_path):
    assert Settings().serves(DRAFT)
    assert not Settings().serves(str(tmp_path))
    assert Settings(policy="static:3").serves(str(tmp_path))


@pytest.mark.parametrize(
    ("part", "name", "value", "reason"),
    [
        ("scheduler_config", "async_scheduling", True, "asynchronous"),
        ("speculative_config", "parallel_drafting", True, "parallel"),
        ("speculative_config", "use_heterogeneous_vocab", True, "vocabulary of its own"),
        ("parallel_config", "tensor_parallel_size", 2, "tensors are parallel"),
        ("parallel_config", "pipeline_parallel_size", 2, "stages"),
    ],
)
def test_what_cannot_be_served_has_a_reason(part, name, value, reason):
    config = drafting().llm_engine.vllm_config
    assert why_left_alone(config) is None
    parts = ("scheduler_config", "speculative_config", "parallel_config", "model_config", "lora_config")
    changed = SimpleNamespace(**{each: getattr(config, each) for each in parts}, use_v2_model_runner=False)
    setattr(changed, part, _With(getattr(config, part), name, value))
    assert reason in why_left_alone(changed)


class _With:
    """Another object with one value changed."""

    def __init__(self, other: object, name: str, value: object) -> None:
        self._other = other
        setattr(self, name, value)

    def __getattr__(self, name: str) -> object:
        return getattr(self._other, name)


def test_counts_of_several_processes_are_added(tmp_path, monkeypatch):
    monkeypatch.setenv(FILE, str(tmp_path / "statistics"))
    ours = Statistics()
    for lookahead, accepted in ((0, 0), (3, 2), (3, 3)):
        ours.observe(Round(5, tuple(range(lookahead)), accepted, (1,)))
    ours.step(num_questions=8, num_stops=2, num_draft_steps=6, seconds=0.5)
    other = np.array(ours.numbers)
    ours.numbers.flush()
    other.tofile(tmp_path / "statistics.another")
    samples = {}
    for family in _Collector(tmp_path / "statistics").collect():
        samples |= {(sample.name, *sample.labels.values()): sample.value for sample in family.samples}
    assert samples[("dsl_train:rounds_total",)] == 6
    assert samples[("dsl_train:questions_total",)] == 16
    assert samples[("dsl_train:accepted_tokens_total",)] == 10
    assert samples[("dsl_train:lookahead_sum",)] == 12
    assert samples[("dsl_train:lookahead_bucket", "2")] == 2
    assert samples[("dsl_train:lookahead_bucket", "3")] == 6
