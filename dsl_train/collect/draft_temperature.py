"""At which temperature the draft has most of its tokens accepted, for each of the target's: expected, without drawing.

A draft token at a place is accepted with probability sum over the vocabulary of min(target, draft) (Leviathan et al.
2211.17192, corollary 3.6), whatever it is; the best temperature has the largest mean over the places of some texts. Any
temperature is lossless. Letters: N places, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.reading import Batch, batches, response_limit
from dsl_train.collect.tasks import Task
from dsl_train.collect.text import MODEL_FAILURES, Request
from dsl_train.pair.loading import Pair, load_pair
from dsl_train.runners.cached import context_length

#: Draft temperatures tried, in target temperatures.
RATIOS = tuple(i / 20 for i in range(6, 27))
#: Texts of each temperature that are read; mean acceptance is flat around its top.
NUM_TEXTS = 64
#: Positions of every text read at a time, and places whose distributions are compared at a time.
_CHUNK, _NUM_PLACES = 16, 256


def estimate_temperatures(config: CollectConfig, tasks: Iterable[Task]) -> dict[float, float]:
    """The best draft temperature for each target temperature of sampled `tasks`, by their first texts. Loads the pair.

    Raises DslError if no text of a temperature could be read.
    """
    chosen: dict[float, list[Task]] = defaultdict(list)
    for task in tasks:
        if not task.sampling.greedy and len(chosen[task.sampling.temperature]) < NUM_TEXTS:
            chosen[task.sampling.temperature].append(task)
    if not chosen:
        return {}
    assert config.target is not None, "the configuration has been checked"
    pair = load_pair(config.target, config.draft, config.dtype, config.device, config.device_map, config.quantization)
    best = {}
    for temperature, of_temperature in chosen.items():
        requests = list(_readable(pair, of_temperature, config.seed))
        if not requests:
            raise DslError(
                f"none of the first {len(of_temperature)} texts at temperature {temperature:g} could be read to "
                "estimate the draft's temperature; give it as a number with --draft_temperature"
            )
        acceptances = mean_acceptances(pair, requests, config.max_new_tokens, config.batch_size)
        best[temperature] = round(temperature * max(acceptances, key=acceptances.__getitem__), 4)
    return best


@torch.inference_mode()
def mean_acceptances(
    pair: Pair, requests: Sequence[Request], max_new_tokens: int, batch_size: int, ratios: Sequence[float] = RATIOS
) -> dict[float, float]:
    """Draft temperature, in target temperatures -> expected acceptance of a draft token, averaged over all places of
    the requested texts. Those without a response are generated. Texts are sampled and at least one."""
    totals, num_places = dict.fromkeys(ratios, 0.0), 0
    for sampling, target_logits, draft_logits in read_places(pair, requests, max_new_tokens, batch_size):
        num_places += len(target_logits)
        for ratio in ratios:
            tried = replace(sampling, draft_temperature=ratio * sampling.temperature)
            accepted = expected_acceptance(tried, target_logits, draft_logits)
            totals[ratio] += float(accepted.sum(dtype=torch.float64))
    return {ratio: total / num_places for ratio, total in totals.items()}


def read_places(
    pair: Pair, requests: Sequence[Request], max_new_tokens: int, batch_size: int
) -> Iterator[tuple[Sampling, torch.Tensor, torch.Tensor]]:
    """Some places at a time: how their texts are sampled, and the logits [N, V] of target and draft."""
    context = min(context_length(model) for model in (pair.target, pair.draft))
    for numbers in batches(dict(enumerate(requests)), batch_size):
        part = [requests[i] for i in numbers]
        limits = [response_limit(request, max_new_tokens, context) for request in part]
        batch = Batch(pair, part, limits, tail_length=0)
        while batch.texts:
            chunk = batch.read(_CHUNK)
            places = chunk.is_text.flatten().nonzero().squeeze(-1)  # in the chunk, flat
            for sampling, group in chunk.by_sampling(places // chunk.token_ids.shape[1]):
                for some in places[group].split(_NUM_PLACES):
                    target_logits, draft_logits = chunk.target_logits, chunk.draft_logits
                    yield sampling, target_logits.flatten(0, 1)[some], draft_logits.flatten(0, 1)[some]
            batch.drop_finished()


def expected_acceptance(
    sampling: Sampling, target_logits: torch.Tensor, draft_logits: torch.Tensor
) -> torch.Tensor:  # [N, V], [N, V] raw -> [N]
    """Sum over the vocabulary of min(target, draft)."""
    return torch.minimum(sampling.probs(target_logits), sampling.of_draft.probs(draft_logits)).sum(-1)


def given_temperatures(config: CollectConfig, tasks: Iterable[Task]) -> dict[float, float]:
    """The draft's temperature for each target temperature of sampled `tasks`, as the command says; 0 for a draft that
    proposes its most likely token."""
    given = 0.0 if config.draft_sampling == "greedy" else config.draft_temperature
    targets = {task.sampling.temperature for task in tasks if not task.sampling.greedy}
    return {target: given if isinstance(given, float | int) else target for target in targets}


def drafted_at(task: Task, temperatures: Mapping[float, float]) -> Task:
    """The task with the draft's temperature for its own; greedy texts have none."""
    if task.sampling.greedy:
        return task
    drawn = replace(task.sampling, draft_temperature=temperatures[task.sampling.temperature])
    return replace(task, sampling=drawn)


def _readable(pair: Pair, tasks: Iterable[Task], seed: int) -> Iterable[Request]:
    """What the collector itself would not put aside."""
    context = min(context_length(model) for model in (pair.target, pair.draft))
    for task in tasks:
        try:
            request = task.request(pair, seed)
            request.check(context, pair.target.config.get_text_config().vocab_size, pair.eos_token_ids)
        except MODEL_FAILURES:
            continue
        yield request
