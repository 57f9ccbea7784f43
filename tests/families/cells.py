"""What the table's columns test, each on one family: an exception is a failure, a DslError its refusal.

Sampling needs no statistics here. The rule that accepts and corrects is tested by itself (`test_verify.py`,
`test_engine.py`): it gives the target's law whenever the logits it reads are the target's behind that very text. So a
family is lossless under sampling if, for texts drawn by a hostile policy, every row that came of a cache rolled back
and forth is the row of one forward over the finished text.
"""

import random
from collections.abc import Callable

import numpy as np
import torch

from dsl_train import attach
from dsl_train.base.policy import Policy
from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.hindsight import HindsightCollector
from dsl_train.collect.oracle import OracleCollector
from dsl_train.collect.text import Request
from dsl_train.hf import decode
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.pair.identity import describe_model
from dsl_train.pair.loading import Pair
from dsl_train.runners.supported import check_pair_supported
from families.case import EOS, Case, Recorded, cases
from families.zoo import Family, make_pair

NEW_TOKENS = 30


class Hostile(Policy):
    """Stops by the value of the drafted token and by chance; asks for features so that they are computed."""

    name, needs, max_lookahead = "hostile", "features", 7

    def __init__(self) -> None:
        self.num_drafted = self.num_accepted = 0
        self.reset()

    def wants_another(self, step) -> bool:
        return (step.draft is None or step.draft.token_id % 5 > 0) and self.rng.random() < 0.85

    def observe(self, finished) -> None:
        self.num_drafted += len(finished.drafted)
        self.num_accepted += finished.num_accepted

    def reset(self) -> None:
        self.rng = random.Random(0)


def greedy(family: Family) -> None:
    """The engine against the target's own `generate`."""
    policy = Hostile()
    for case in _supported(family):
        engine = SpeculativeEngine(*case.runners(), policy, eos_token_ids=EOS)
        response = engine.generate(case.prompt, NEW_TOKENS).token_ids
        assert [*case.prompt, *response] == case.generate(NEW_TOKENS)
    assert 0 < policy.num_accepted < policy.num_drafted, "all or nothing was accepted: the equality says little"


@torch.inference_mode()
def sampled(family: Family) -> None:
    """Rows of both runners against one forward over the text."""
    for case in _supported(family):
        target, draft = (Recorded(runner) for runner in case.runners())
        engine = SpeculativeEngine(target, draft, Hostile(), Sampling(0.9), EOS)
        text = [*case.prompt, *engine.generate(case.prompt, NEW_TOKENS, seed=1).token_ids]
        for recorded in (target, draft):
            rows, whole = recorded.rows, case.logits(recorded.model, text)
            assert len(rows) >= len(text) // 2 - len(case.prompt)
            for index, row in rows.items():
                torch.testing.assert_close(row, whole[index - 1], rtol=1e-4, atol=1e-3)
        assert set(range(len(case.prompt), len(text))) <= target.rows.keys()


def collect(family: Family) -> None:
    """Hindsight rows against the sequential reference, tails included."""
    target, draft = make_pair(family)
    check_pair_supported(target, draft)
    pair = Pair(target, draft, None, describe_model(target, "target"), describe_model(draft, "draft"))
    config = CollectConfig("target", "draft", "out", "prompts", max_new_tokens=NEW_TOKENS, tail_length=4, batch_size=2)
    requests = [
        Request(tuple(case.prompt), i, Sampling(), source=case.inputs if target.config.is_encoder_decoder else None)
        for i, case in enumerate(cases(family))
    ]
    answers = (collector(pair, config).collect(requests) for collector in (HindsightCollector, OracleCollector))
    for parallel, sequential in zip(*answers, strict=True):
        assert parallel.response_token_ids == sequential.response_token_ids
        for name, column in sequential.rows.items():
            np.testing.assert_allclose(parallel.rows[name], column, atol=2e-4, err_msg=name)


def attached(family: Family) -> None:
    """transformers' assisted generation with our stop rule against the target's own `generate`."""
    for case in _supported(family):
        assistant = attach(case.draft, policy=Hostile())
        try:
            assisted = case.generate(NEW_TOKENS, assistant_model=assistant)
        except ValueError as error:
            raise DslError(f"transformers: {error}") from error
        assert assisted == case.generate(NEW_TOKENS)


def custom_generate(family: Family) -> None:
    """`generate(custom_generate=decode)`, with a processor that reads the text, against `generate` with the same."""
    for case, options in zip(_supported(family), ({}, {"repetition_penalty": 1.3}), strict=True):
        ours = case.generate(NEW_TOKENS, custom_generate=decode, draft_model=case.draft, policy=Hostile(), **options)
        assert ours == case.generate(NEW_TOKENS, **options)


COLUMNS: dict[str, Callable[[Family], None]] = {
    "greedy": greedy,
    "sampled": sampled,
    "collect": collect,
    "attach": attached,
    "custom_generate": custom_generate,
}


def _supported(family: Family) -> list[Case]:
    found = cases(family)
    check_pair_supported(found[0].target, found[0].draft)
    return found
