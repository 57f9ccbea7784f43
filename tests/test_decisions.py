"""What decisions are built from hand-written traces."""

import numpy as np
import pytest
from tiny_traces import EOS, PROMPT, make_traces

from dsl_train.base.records import DslError
from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.features.state import BlockState, TextState
from dsl_train.features.vector import assemble
from dsl_train.traces.decisions import build, draft_records
from dsl_train.traces.round_starts import UNLIMITED
from dsl_train.traces.store import Traces


def decision_lists(decisions, name):
    """Values of one column, a list per start."""
    return [part.tolist() for part in np.split(getattr(decisions, name), decisions.offsets[1:-1])]


def test_every_start_behind_the_first_response_token_has_its_run_and_its_limit():
    decisions = build(make_traces("aaarara", "ara"))
    assert decisions.bounds.tolist() == [0, 6, 8]
    assert decisions.start_index.tolist() == [4, 5, 6, 7, 8, 9, 4, 5]
    assert decisions.run.tolist() == [2, 1, 0, 1, 0, 1, 0, 1]
    assert decisions.limit.tolist() == [5, 4, 3, 2, 1, 0, 1, 0]  # one place is left for the extra token
    assert decisions.start_sequence.tolist() == [0] * 6 + [1] * 2


def test_survival_holds_exactly_at_the_positions_before_the_first_rejection():
    decisions = build(make_traces("aaaraa"))
    assert decision_lists(decisions, "position") == [[0, 1, 2, 3], [0, 1, 2], [0, 1], [0], []]
    assert decision_lists(decisions, "survival") == [[1, 1, 0, 0], [1, 0, 0], [0, 0], [1], []]
    assert decision_lists(decisions, "start") == [[4] * 4, [5] * 3, [6] * 2, [7], []]


def test_decisions_end_one_behind_the_recorded_tail():
    decisions = build(make_traces("aaraaaaaaaaaa", tail=2))
    assert decisions.num_decisions.tolist()[:2] == [5, 4]  # run, rejected one, tail of 2, one more
    assert decisions.limit.tolist()[:2] == [11, 10]


def test_no_start_has_more_decisions_than_the_largest_lookahead():
    decisions = build(make_traces("a" * 12), max_lookahead=4)
    assert decisions.num_decisions.tolist() == [4] * 7 + [3, 2, 1, 0]


def test_drafting_ends_with_an_accepted_end_of_text():
    decisions = build(make_traces("aaaE"))
    assert decisions.limit.tolist() == [3, 2, 1]
    assert decision_lists(decisions, "survival") == [[1, 1, 1], [1, 1], [1]]


def test_drafting_ends_with_an_end_of_text_drafted_by_mistake():
    traces = make_traces("aaraaaE", "aaraaae")
    traces.rows["token_id"][3] = EOS  # depth 1 behind the rejected third token
    decisions = build(traces)
    assert decisions.limit.tolist()[:2] == [3, 2]
    assert decision_lists(decisions, "position")[0] == [0, 1, 2]
    assert (decisions.limit[6:8] > UNLIMITED - 10).all()  # who left the text does not know where it ended


def test_off_the_text_drafting_ends_where_the_text_would_have_been_cut():
    traces = make_traces("aaraE")
    manifest = {"counts": {"num_sequences": 1}, "sampling": {"max_new_tokens": 7}}
    decisions = build(Traces(traces.rows, traces.sequences, (manifest,)))
    assert decisions.limit.tolist() == [5, 4, 2, 1]  # 7 tokens allowed; the last two starts draft the end of text


def test_vectors_are_those_of_a_live_walk_bit_for_bit():
    traces = make_traces("aarararaaraa", "raarE", tail=4)
    decisions = build(traces, max_lookahead=6)
    expected = [vector for i in range(2) for vector in live_vectors(traces, i, max_lookahead=6)]
    np.testing.assert_array_equal(decisions.features, np.array(expected, dtype=np.float32))


def live_vectors(traces: Traces, number: int, max_lookahead: int):
    """The walk written out: every start anew from the prompt."""
    sequence = traces.sequences[number]
    of_text = traces.rows["sequence_id"] == number
    columns = {name: column[of_text] for name, column in traces.rows.items()}
    drafts = draft_records(columns)
    at = {(int(i), int(d)): n for n, (i, d) in enumerate(zip(columns["index"], columns["depth"], strict=True))}
    first, end = len(PROMPT), len(PROMPT) + len(sequence.response_token_ids)
    for start in range(first + 1, end):
        text = TextState(list(PROMPT), 0.0)
        for index in range(first, start):
            row = at[index, 0]
            text.commit(int(columns["text_token_id"][row]))
            text.agree(float(columns["agreement"][row]))
        block, index, depth = BlockState(text), start, 0
        for _ in range(min(end - start - 1, max_lookahead) if sequence.finish_reason == "length" else max_lookahead):
            if index == end:
                break
            yield assemble(block)
            if (index, depth) not in at:
                break
            block.append(drafts[at[index, depth]])
            on_text = depth == 0 and columns["accepted"][at[index, 0]]
            index, depth = (index + 1, 0) if on_text else (index, depth + 1)


def test_the_first_decision_of_a_round_knows_nothing_of_drafts():
    decisions = build(make_traces("aaraaraa"))
    first = decisions.features[decisions.position == 0]
    assert not first[:, : FEATURE_NAMES.index("copy_length")].any()


def test_selected_sequences_keep_their_decisions_and_get_new_numbers():
    traces = make_traces("aaraa", "arara", "aaaaE", "a")
    decisions, alone = build(traces), build(make_traces("aaaaE"))
    selected = decisions.select(np.array([False, False, True, False]))
    assert selected.prompt_ids == ["prompt-2"]
    assert selected.sequence.tolist() == [0] * len(selected)
    for name in ("survival", "position", "start", "offsets", "run", "limit", "bounds"):
        np.testing.assert_array_equal(getattr(selected, name), getattr(alone, name))


def test_a_text_of_one_token_has_no_rounds():
    decisions = build(make_traces("a", "aa"))
    assert decisions.bounds.tolist() == [0, 0, 1]
    assert len(decisions) == 0  # the one round left has room for the target's own token only


def test_draft_rows_follow_the_text_and_then_the_tail():
    decisions = build(make_traces("aaaraaaa", tail=2))
    assert decisions.draft_rows(0, 2).tolist() == [1, 2]
    assert decisions.draft_rows(0, 6).tolist() == [1, 2, 3, 4, 5]


def test_rows_that_do_not_cover_the_response_are_refused():
    traces = make_traces("aaa", "aaa")
    damaged = Traces({name: column[:-1] for name, column in traces.rows.items()}, traces.sequences, ())
    with pytest.raises(DslError, match=r"prompt-1.* response of 3 tokens but 2 depth-0 rows; collect"):
        build(damaged)


def test_a_decision_behind_a_recorded_tail_stands_for_those_whose_tail_was_left_out():
    traces = make_traces("aaaraaaa", "araa", tail=2)
    manifests = tuple({"counts": {"num_sequences": 1}, "config": {"tail_fraction": share}} for share in (0.5, 1.0))
    decisions = build(Traces(traces.rows, traces.sequences, manifests))
    assert decisions.replayable(np.array([True, True])).tolist() == [False, True]
    assert decisions.replayable(np.array([True, False])).tolist() == [True, False]
    assert decision_lists(decisions, "weight")[0] == [1, 1, 1, 1, 2, 2]  # three accepted, one rejected, the tail
    assert set(decisions.weight[decisions.sequence == 1].tolist()) == {1.0}
    assert (
        decisions.select(np.array([False, True])).weight.tolist() == decisions.weight[decisions.sequence == 1].tolist()
    )
