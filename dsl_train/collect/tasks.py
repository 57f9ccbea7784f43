"""What is to be collected: the usable texts of the input, those of this shard, and what was put aside on reading.

A task is plain data, tokenized where the models are, so that it can travel to any process.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from transformers import PreTrainedTokenizerBase

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.layouts import requests_by_id
from dsl_train.collect.logged import Response, ResponseReader, answers_of
from dsl_train.collect.prompts import Prompt, content_hash, no_prompts, prompt_of
from dsl_train.collect.sources import Record, read_records
from dsl_train.collect.split import Shard
from dsl_train.collect.text import Request
from dsl_train.pair.loading import Kind, Pair
from dsl_train.pair.prompt import EncodedPrompt
from dsl_train.runners.cached import context_length


@dataclass(frozen=True)
class Task:
    """One text to collect."""

    where: str
    """File and row it came from."""
    prompt: Prompt
    sampling: Sampling
    response: Response | None = None
    """None: the target is asked."""

    @property
    def text_id(self) -> str:
        """16 hex digits: of the prompt, and of the response in the log."""
        if self.response is None:
            return self.prompt.prompt_id
        drawn = asdict(replace(self.sampling, draft_temperature=None))  # no matter how it is labelled
        del drawn["draft_temperature"]
        return content_hash([self.prompt.prompt_id, self.response.said, drawn])

    def request(self, pair: Pair, seed: int) -> Request:
        """In tokens; a response is cut where the models' context ends. Raises DslError if it cannot be tokenized."""
        prompt = self.prompt.encode_for(pair)
        source = prompt.source if isinstance(prompt, EncodedPrompt) else None
        prompt_ids = prompt.token_ids if isinstance(prompt, EncodedPrompt) else tuple(prompt)
        response = None
        if self.response:
            room = min(map(context_length, (pair.target, pair.draft))) + 1 - len(prompt_ids)
            behind = self.prompt if source is None else None
            response = tuple(self.response.encode(behind, prompt_ids, pair.tokenizer, pair.eos_token_ids))[:room]
        log_probs = self.response.log_probs if self.response else None
        return Request(prompt_ids, self._seed(seed), self.sampling, response, source, log_probs)

    def _seed(self, seed: int) -> int:
        """63 bits of the run's seed and the text, the same in any order, part and shard."""
        return int.from_bytes(hashlib.sha256(f"{seed} {self.text_id}".encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Rejected:
    """A row, or a text, that was put aside."""

    where: str
    prompt_id: str
    """Empty if it was not even a prompt."""
    reason: str

    @classmethod
    def of(cls, record: Record, error: DslError) -> "Rejected":
        reason = str(error).removeprefix(f"{record.where}: ")
        return cls(record.where, "", reason.encode("utf-8", "backslashreplace").decode())  # it may quote a column


@dataclass(frozen=True)
class Inputs:
    """What one shard has to do."""

    tasks: tuple[Task, ...]
    rejected: tuple[Rejected, ...]
    num_tasks: int
    """In all shards."""

    @property
    def hash(self) -> str:
        return self.hash_of_first(len(self.tasks))

    def hash_of_first(self, count: int) -> str:
        """16 hex digits over the first so many texts and their order."""
        return hashlib.sha256(" ".join(task.text_id for task in self.tasks[:count]).encode()).hexdigest()[:16]


def read_inputs(
    config: CollectConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int, shard: Shard, kind: Kind
) -> Inputs:
    """The first `num_prompts` different texts, each in one shard, with all others of its prompt.

    A row that cannot be used is put aside. Raises DslError for a source that cannot be read or has nothing usable.
    """
    tasks: list[Task] = []
    rejected: list[Rejected] = []
    text_ids: set[str] = set()
    prompt_numbers: dict[str, int] = {}
    for item in _read(config, tokenizer, vocab_size, kind):
        if isinstance(item, Rejected):
            rejected.append(item)
        elif item.text_id not in text_ids:
            text_ids.add(item.text_id)
            prompt_number = prompt_numbers.setdefault(item.prompt.prompt_id, len(prompt_numbers))
            if shard.takes(prompt_number):
                tasks.append(item)
        if len(text_ids) == config.num_prompts:
            break
    if not text_ids and not rejected:
        raise no_prompts(config.source)
    if not text_ids:
        first = rejected[0]
        raise DslError(
            f"none of the {len(rejected)} rows of {config.source} could be used; the first: {first.where}: "
            f"{first.reason}"
        )
    kept = tuple(reject for number, reject in enumerate(rejected) if shard.takes(number))
    return Inputs(tuple(tasks), kept, len(text_ids))


def _read(
    config: CollectConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int, kind: Kind
) -> Iterator[Task | Rejected]:
    """Every row's texts, or what is wrong with it."""
    if config.responses and kind == "speech":
        raise DslError("responses to audio cannot be read from a log; have the target transcribe it with --prompts")
    vocab_sizes = frozenset((len(tokenizer), tokenizer.vocab_size, vocab_size))
    reader = ResponseReader(tokenizer, vocab_sizes, config.sampling, config.column)
    requests = None
    if config.prompts is not None and config.responses is not None:
        requests = requests_by_id(config.prompts, read_records(config.prompts, config.split))
    for record in read_records(config.source, config.split):
        try:
            rows = answers_of(record, requests) if config.responses else [record]
        except DslError as error:
            yield Rejected.of(record, error)
            continue
        for row in rows:
            try:
                if config.responses:
                    brought = reader.read(row)
                    yield Task(row.where, brought.prompt, brought.sampling, brought.response)
                else:
                    yield Task(row.where, prompt_of(row, config.column, tokenizer, kind), config.sampling)
            except DslError as error:
                yield Rejected.of(row, error)
