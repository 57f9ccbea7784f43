"""What the models had in mind when a draft was made: last hidden states, for `sampled_ceiling.py`.

Traces hold none, so the texts and their tails are read again. Letters: M trace rows, H hidden units, T tokens.
"""

from collections.abc import Iterator

import numpy as np
import torch
from transformers import PreTrainedModel

from dsl_train.traces.decisions import Decisions

_TOKENS_AT_ONCE = 1 << 14


@torch.inference_mode()
def of_draft(some: Decisions, draft: PreTrainedModel) -> np.ndarray:
    """[M, H] float16: the draft's state that the row's drafted token was drawn from; behind a rejection, on what it
    drafted there."""
    states = np.zeros((len(some.traces.rows["index"]), _width(draft)), np.float16)
    for tokens, rows in _texts(some):
        index, depth = (some.traces.rows[name][rows] for name in ("index", "depth"))
        on_text = depth == 0
        read = _read(draft, tokens[None])[0]
        states[rows[on_text]] = read[index[on_text] - 1]
        tails = rows[~on_text]
        if len(tails):
            states[tails] = _on_branches(some, draft, tokens, tails)
    return states


@torch.inference_mode()
def of_target(some: Decisions, target: PreTrainedModel) -> np.ndarray:
    """[M, H] float16: the target's latest state when a round starts at the row's index. It has been run up to the last
    committed token but one."""
    states = np.zeros((len(some.traces.rows["index"]), _width(target)), np.float16)
    for tokens, rows in _texts(some):
        states[rows] = _read(target, tokens[None])[0][np.maximum(0, some.traces.rows["index"][rows] - 2)]
    return states


def _width(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().hidden_size)


def _texts(some: Decisions) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens [T] of each text, and the numbers of its trace rows."""
    sequence_ids = some.traces.rows["sequence_id"]
    for source in some.source.tolist():
        text = some.traces.sequences[source]
        first, last = np.searchsorted(sequence_ids, [source, source + 1])
        yield np.concatenate([text.prompt_token_ids, text.response_token_ids]), np.arange(first, last)


def _on_branches(some: Decisions, draft: PreTrainedModel, tokens: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """[len(tails), H]: rows of depth 1, 2, ... behind each rejected token, which stands in the row before them."""
    depth = some.traces.rows["depth"][tails]
    index, token_ids = (some.traces.rows[name] for name in ("index", "token_id"))
    begins = np.flatnonzero(depth == 1)
    branches = [np.concatenate([tokens[: index[part[0]]], token_ids[part - 1]]) for part in np.split(tails, begins[1:])]
    states, size = [], max(1, _TOKENS_AT_ONCE // max(map(len, branches)))
    for i in range(0, len(branches), size):
        some_branches = branches[i : i + size]
        padded = np.zeros((len(some_branches), max(map(len, some_branches))), np.int64)
        for row, branch in zip(padded, some_branches, strict=True):
            row[: len(branch)] = branch
        read = _read(draft, padded)
        for number, branch in enumerate(some_branches):
            num_tail = len(branch) - index[tails[begins[i + number]]]
            states.append(read[number, len(branch) - num_tail : len(branch)])
    return np.concatenate(states)


def _read(model: PreTrainedModel, token_ids: np.ndarray) -> np.ndarray:  # [n, T] -> [n, T, H]
    output = model.base_model(input_ids=torch.from_numpy(token_ids.astype(np.int64)), use_cache=False)
    states: np.ndarray = output.last_hidden_state.numpy().astype(np.float16)
    return states
