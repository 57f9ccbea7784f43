"""Parts collected by Ray Data: every actor holds one model pair, this process alone writes. The only door to Ray.

An actor that dies is replaced and its part given to another: nothing of it was written, and the same part gives the
same rows. Models and packages must be where the actors are; prompts and rows travel.
"""

import pickle
import re
from collections.abc import Iterator
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from dsl_train.base.records import DslError
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.worker import FinishedPart, Parts, Worker

#: How often a part may lose its actor, which is started again each time.
_RETRIES = 3


class Actor:
    """What Ray makes once in each of its processes and calls for each part."""

    def __init__(self, worker: type[Worker], config: CollectConfig) -> None:
        self.worker = worker(config)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part, tasks = pickle.loads(row["work"])
        return {"finished": pickle.dumps(self.worker.run(part, tasks))}


def collect_by_actors(config: CollectConfig, parts: Parts, worker: type[Worker] = Worker) -> Iterator[FinishedPart]:
    """In the order in which they are finished; starts nothing if there are none.

    Uses the cluster that RAY_ADDRESS names, else one started here and stopped at the end. Raises DslError if it is too
    small or Ray gives up on a part.
    """
    if not parts:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        _check_size(config)
        yield from _stream(config, parts, worker)
    except RayError as error:
        raise DslError(
            f"Ray could not collect a part ({_reason(error)}); finished parts are safe: mend it and run the same "
            "command again"
        ) from error
    finally:
        if started:
            ray.shutdown()


def _stream(config: CollectConfig, parts: Parts, worker: type[Worker]) -> Iterator[FinishedPart]:
    ray.data.DataContext.get_current().enable_progress_bars = False
    work = [{"work": pickle.dumps((part, tuple(tasks)))} for part, tasks in parts.items()]
    finished = ray.data.from_items(work, override_num_blocks=len(work)).map(
        Actor,  # type: ignore[arg-type]  # Ray makes it and calls what it made
        fn_constructor_args=(worker, config),
        compute=ray.data.ActorPoolStrategy(size=config.num_actors),
        num_cpus=1,
        num_gpus=config.gpus_per_actor,
        max_restarts=-1,
        max_task_retries=_RETRIES,
    )
    for row in finished.iter_rows():
        yield pickle.loads(row["finished"])


def _check_size(config: CollectConfig) -> None:
    """Ray would wait for ever."""
    there = ray.cluster_resources()
    for kind, needed in (("CPU", config.num_actors), ("GPU", config.num_actors * config.gpus_per_actor)):
        if there.get(kind, 0) < needed:
            raise DslError(
                f"{config.num_actors} actors need {needed:g} {kind}s but the Ray cluster has {there.get(kind, 0):g}; "
                "lower --num_actors or --gpus_per_actor, or add nodes"
            )


def _reason(error: BaseException) -> str:
    """What was raised in the actor, out of Ray's account of it."""
    raised = re.findall(r"^\S*(?:Error|Exception): .+$", str(error), re.MULTILINE)
    named = [line for line in raised if "UserCodeException" not in line]
    return (named[-1] if named else str(error).strip() or type(error).__name__)[:300]
