"""vLLM with our stop rule says what vLLM without speculation says, and drafts what our own loop drafts."""

import gc
import os
import random
import subprocess
import sys

import pytest
from engines import (
    DRAFT,
    ROOT,
    TARGET,
    answers,
    assert_drafts_are_what_the_draft_says,
    decide,
    drafting,
    greedy,
    make_engine,
    plain,
    prompts,
    runner_of,
)

from dsl_train.api.speculator import Speculator
from dsl_train.base.cost import StopRule
from dsl_train.pair.loading import load_pair
from dsl_train.predictor.runtime import Predictor
from dsl_train.vllm.decision import EachOnItsOwn, LearnedTogether
from dsl_train.vllm.proposer import LookaheadProposer
from dsl_train.vllm.request import RequestText
from dsl_train.vllm.settings import Settings

#: Lengths and stop strings of the mixed batch.
MIXED = [greedy(24), greedy(72, stop=["\n\n"]), greedy(9), greedy(64), greedy(48, stop=["return"]), greedy(1)] * 2


def the_predictor() -> Predictor:
    return Predictor.load(f"{DRAFT}/dsl")


def learned(threshold: float = 0.2) -> LearnedTogether:
    return LearnedTogether(the_predictor(), StopRule.of(threshold))


class Hostile:
    """Wants tokens at random, for requests at random, and looks at what was drafted."""

    name, needs_features, needs_primitives, without_entropy = "hostile", False, True, True
    num_questions = num_stops = 0

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def policy(self) -> None:
        return None

    def begin(self, num_requests: int) -> int:
        return self._random.choice([0, 1, 3, 16, 16])

    def wanted(self, requests: list[RequestText], position: int) -> list[RequestText]:
        return [r for r in requests if self._random.random() < (0.9 if r.block and r.block[-1] % 2 else 0.6)]

    def observe(self, request: RequestText, finished: object) -> None:
        pass


def test_the_predictor_beside_the_draft_is_used_with_no_further_flag():
    drafter = runner_of(drafting()).drafter
    assert isinstance(drafter, LookaheadProposer)
    assert drafter.vllm_config.scheduler_config.async_scheduling is False


def test_one_text_is_the_targets_own():
    engine = drafting()
    recorded = decide(engine, Settings().decision(engine.llm_engine.vllm_config, *models(engine)))
    for prompt in prompts(3):
        assert answers(engine, [prompt], greedy(96)) == answers(plain(), [prompt], greedy(96))
    assert sum(len(each.drafted) for rounds in recorded.rounds.values() for each in rounds) > 0


def models(engine):
    runner = runner_of(engine)
    return runner.model, runner.drafter.model


@pytest.mark.parametrize("decision", [learned, Hostile, lambda: EachOnItsOwn("heuristic")])
def test_a_mixed_batch_is_the_targets_own_and_the_lengths_differ(decision):
    engine, texts = drafting(), prompts(12)
    recorded = decide(engine, decision())
    expected = answers(plain(), texts, MIXED)
    assert answers(engine, texts, MIXED) == expected
    assert len({len(each.drafted) for rounds in recorded.rounds.values() for each in rounds}) > 2
    tokenizer = engine.get_tokenizer()
    compared = 0
    for prompt, answer in zip(texts, expected, strict=True):
        ids = tokenizer(prompt).input_ids
        compared += assert_drafts_are_what_the_draft_says(recorded.rounds.get(tuple(ids), []), [*ids, *answer])
    assert compared > 100


def test_requests_of_one_step_have_lookaheads_of_their_own():
    engine = drafting()
    decide(engine, learned())
    drafter, blocks = runner_of(engine).drafter, []
    propose = drafter.vllm_propose
    drafter.vllm_propose = lambda *states: blocks.append(propose(*states)) or blocks[-1]
    try:
        answers(engine, prompts(8), greedy(48))
    finally:
        del drafter.vllm_propose
    assert any(len({len(block) for block in step}) > 2 for step in blocks)


def test_rounds_are_those_of_our_own_loop():
    """The same thresholds and texts, one by one and all at once: start, drafted, accepted, committed."""
    engine, texts, threshold = drafting(), prompts(4), 0.2
    tokenizer = engine.get_tokenizer()
    ids = [tuple(tokenizer(prompt).input_ids) for prompt in texts]
    pair = load_pair(TARGET, DRAFT)
    own = {}
    for each in ids:
        speculator = Speculator(pair, predictor=f"{DRAFT}/dsl", threshold=threshold)
        own[each] = speculator.generate(each, max_new_tokens=64).result.rounds
    assert sum(len(each.drafted) for rounds in own.values() for each in rounds) > 100
    alone = {}
    for prompt in texts:
        recorded = decide(engine, learned(threshold))
        answers(engine, [prompt], greedy(64))
        alone |= recorded.rounds
    together = decide(engine, learned(threshold))
    answers(engine, texts, greedy(64))
    for each in ids:
        assert trimmed(alone[each]) == trimmed(own[each])
        assert trimmed(together.rounds[each]) == trimmed(own[each])


def trimmed(rounds):
    """All but the last, which vLLM cuts elsewhere when the text ends in it."""
    return [(each.start, each.drafted, each.num_accepted, each.committed) for each in rounds[:-1]]


@pytest.mark.parametrize(("spec", "lookahead"), [("static:0", 0), ("static:3", 3)])
def test_other_policies_are_served_for_comparison(spec, lookahead):
    engine = drafting()
    recorded, passes = decide(engine, EachOnItsOwn(spec)), runner_of(engine).drafter.passes
    before, prompt = passes.num_passes, prompts(1)
    assert answers(engine, prompt, greedy(40)) == answers(plain(), prompt, greedy(40))
    (rounds,) = recorded.rounds.values()
    assert {len(each.drafted) for each in rounds[:-3]} == {lookahead}
    assert (passes.num_passes > before) == (lookahead > 0)


def test_a_draft_that_was_left_behind_catches_up():
    class Seldom(Hostile):
        steps = 0

        def begin(self, num_requests):
            self.steps += 1
            return 3 if self.steps % 17 == 0 else 0

        def wanted(self, requests, position):
            return list(requests)

    engine, texts = drafting(), prompts(4)
    recorded = decide(engine, Seldom())
    expected = answers(engine, texts, greedy(64))
    tokenizer = engine.get_tokenizer()
    for prompt, answer in zip(texts, expected, strict=True):
        ids = tokenizer(prompt).input_ids
        rounds = recorded.rounds[tuple(ids)]
        assert {len(each.drafted) for each in rounds} == {0, 3}
        assert assert_drafts_are_what_the_draft_says(rounds, [*ids, *answer]) >= 3
    assert expected == answers(plain(), texts, greedy(64))


def test_preemption_chunked_prompts_and_shared_prefixes_change_nothing():
    """A cache for few tokens, steps of few tokens, texts that begin alike; drafts stay what the draft says."""
    engine = make_engine(max_num_batched_tokens=96, num_gpu_blocks_override=40, block_size=32, max_model_len=384)
    start = prompts(1)[0]
    texts = [start, *prompts(6), start + "    return", start]
    recorded = decide(engine, Hostile(1))
    preempted = []
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    preempt = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *rest, **named: (
        preempted.append(request) or preempt(request, *rest, **named)
    )
    expected = answers(plain(), texts, greedy(96))
    assert answers(engine, texts, greedy(96)) == expected
    assert answers(engine, texts, greedy(96)) == expected  # now with what the cache kept
    assert preempted
    tokenizer = engine.get_tokenizer()
    for prompt, answer in zip(texts, expected, strict=True):
        ids = tokenizer(prompt).input_ids
        assert_drafts_are_what_the_draft_says(recorded.rounds[tuple(ids)], [*ids, *answer])


def test_requests_leave_nothing_behind():
    engine, runner = drafting(), runner_of(drafting())
    decide(engine, learned())
    of_other_engines = set(map(id, living_texts()))
    core = engine.llm_engine
    for i in range(40):
        core.add_request(f"short-{i}", prompts(12)[i % 12], greedy(1 + i % 7))
        if i % 4 == 3:
            core.abort_request([f"short-{i - 2}"])
        core.step()
    while core.has_unfinished_requests():
        core.step()
    core.step()  # vLLM tells its model runner of the last ones
    assert not runner.requests
    assert {id(text) for text in living_texts()} <= of_other_engines


def living_texts() -> list[RequestText]:
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, RequestText)]


def test_vllm_is_left_alone_when_told():
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests/vllm")!r})
from engines import drafting, runner_of
print(type(runner_of(drafting()).drafter).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"DSL_TRAIN": "off"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "DraftModelProposer"
