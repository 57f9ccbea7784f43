"""One model pair at work: tasks in, the rows of a part out. The same in this process and in a Ray actor.

Writes no file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from dsl_train.api.calibration import calibrate
from dsl_train.base.cost import CostProfile
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.draft_alone import DraftAlone, check_labels
from dsl_train.collect.hindsight import HindsightCollector
from dsl_train.collect.oracle import OracleCollector
from dsl_train.collect.server import Server, ServerFailedError
from dsl_train.collect.tasks import Rejected, Task
from dsl_train.collect.text import MODEL_FAILURES, CollectedText, Collector, Reject, Request
from dsl_train.collect.translated import Translator
from dsl_train.pair.loading import Pair, load_draft, load_pair, load_tokenizer, share_tokenizer
from dsl_train.traces.store import Counts, Rows, TraceSequence, join_rows

METHODS: dict[str, Callable[[Pair, CollectConfig], Collector]] = {
    "hindsight": HindsightCollector,
    "oracle": OracleCollector,
}
Parts = Mapping[int, Sequence[Task]]
"""Part number -> its tasks."""


@dataclass(frozen=True, eq=False)
class FinishedPart:
    """All that is to be written of a part."""

    part: int
    rows: Rows
    sequences: tuple[TraceSequence, ...]
    rejected: tuple[Rejected, ...]
    num_tasks: int
    cost: CostProfile | None = None
    """What the pair's steps cost where it was collected; None as long as it gave no text."""

    @property
    def counts(self) -> Counts:
        return Counts.of(self.rows, len(self.sequences))


class Worker:
    """Loads the pair once."""

    def __init__(self, config: CollectConfig) -> None:
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.config = config
        placement = (config.dtype, config.device, config.device_map, config.quantization)
        self._translator: Translator | None = None
        self._answers = Answers(config) if config.server else None
        self._cost: CostProfile | None = None
        self.collector: Collector
        if config.target is None:
            self.pair = load_draft(config.draft, config.dtype, config.device)
            self.collector = DraftAlone(self.pair, config)
        elif share_tokenizer(config.target, config.draft):
            self.pair = load_pair(config.target, config.draft, *placement)
            self.collector = METHODS[config.method](self.pair, config)
        else:
            self.pair = load_pair(config.target, config.draft, *placement, own_tokenizers=True)
            self._translator = Translator(self.pair, load_tokenizer(config.draft), config.max_new_tokens)
            self.collector = HindsightCollector(self._translator.labelling, config, check=False)

    def run(self, part: int, tasks: Sequence[Task]) -> FinishedPart:
        """The part, and what the pair costs, which is not known of two tokenizers and without the target."""
        finished = self.collect_part(part, tasks)
        if finished.sequences and self._cost is None and self._has_target:
            self._cost = calibrate(self.pair, sampling=self.config.sampling)
        return replace(finished, cost=self._cost)

    def collect_part(self, part: int, tasks: Sequence[Task]) -> FinishedPart:
        self.expect(tasks)
        requests = [self._request(task) for task in tasks]
        collected = self.collector.collect([request for request in requests if isinstance(request, Request)])
        sequences, rows, rejected = [], [], []
        for i, (task, request) in enumerate(zip(tasks, requests, strict=True)):
            answer = next(collected) if isinstance(request, Request) else request
            if isinstance(answer, Reject):
                rejected.append(Rejected(task.where, task.prompt.prompt_id, answer.reason))
                continue
            assert isinstance(request, Request), "what was not asked was not answered"
            sequence_id = part * self.config.part_size + i
            sequences.append(_sequence(sequence_id, task, request, answer))
            rows.append({"sequence_id": np.full(len(answer.rows["index"]), sequence_id), **self._known(answer.rows)})
        return FinishedPart(part, join_rows(rows), tuple(sequences), tuple(rejected), len(tasks))

    def _known(self, rows: Rows) -> Rows:
        """Without the target's own columns where it was not asked in these tokens."""
        if self._has_target:
            return rows
        return rows | {name: np.full_like(rows[name], np.nan) for name in ("target_entropy", "target_top_prob")}

    def expect(self, tasks: Sequence[Task]) -> None:
        """Have the server answer these, if there is one, while other work goes on."""
        if self._answers is None:
            return
        for task in tasks:
            try:
                self._answers.expect(task, task.request(self.pair, self.config.seed))
            except MODEL_FAILURES:
                continue  # it will be put aside in its turn

    @property
    def wants_more(self) -> bool:
        """Whether the server has too few texts to answer."""
        return self._answers is not None and self._answers.wants_more

    @property
    def _has_target(self) -> bool:
        """Whether it reads the tokens that are recorded."""
        return self._translator is None and self.config.target is not None

    def _request(self, task: Task) -> Request | Reject:
        try:
            request = self._answers.take(task) if self._answers else None
            request = request or task.request(self.pair, self.config.seed)
            if self.config.target is None:
                check_labels(request)
            return self._translator.translate(request) if self._translator else request
        except ServerFailedError:
            raise
        except MODEL_FAILURES as error:
            return Reject.of(error)


class Answers:
    """What the server was asked, each text once."""

    def __init__(self, config: CollectConfig) -> None:
        assert config.server is not None
        self.server = Server(config.server, config.server_model, config.server_requests)
        self._config = config
        self._pool = ThreadPoolExecutor(config.server_requests, thread_name_prefix="server")
        self._coming: dict[str, Future[Request]] = {}  # by the task's text_id

    @property
    def wants_more(self) -> bool:
        return len(self._coming) < 2 * self._config.server_requests

    def expect(self, task: Task, request: Request) -> None:
        if task.text_id not in self._coming:
            self._coming[task.text_id] = self._pool.submit(self.server.answer, request, self._config.max_new_tokens)

    def take(self, task: Task) -> Request | None:
        """Waits for the answer; None if the task was not expected. Raises what `Server.answer` raises."""
        coming = self._coming.pop(task.text_id, None)
        try:
            return coming.result() if coming else None
        except ServerFailedError:
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise


def _sequence(sequence_id: int, task: Task, request: Request, text: CollectedText) -> TraceSequence:
    return TraceSequence(
        sequence_id=sequence_id,
        prompt_id=task.prompt.prompt_id,
        prompt_token_ids=np.array(request.prompt_token_ids, np.int32),
        response_token_ids=np.array(text.response_token_ids, np.int32),
        temperature=request.sampling.temperature,
        top_k=request.sampling.top_k,
        top_p=request.sampling.top_p,
        finish_reason=text.finish_reason,
    )


def collect_here(config: CollectConfig, parts: Parts) -> Iterator[FinishedPart]:
    """Part by part in this process; loads nothing if there are none."""
    if not parts:
        return iter(())
    return _run_all(Worker(config), parts)


def _run_all(worker: Worker, parts: Parts) -> Iterator[FinishedPart]:
    ahead = iter(parts.values())
    for part, tasks in parts.items():
        while worker.wants_more and (following := next(ahead, None)) is not None:
            worker.expect(following)
        yield worker.run(part, tasks)
