"""The door: vLLM calls :func:`register` in each of its processes (entry point `vllm.general_plugins`).

Three of vLLM's methods are extended: the engine's arguments, which choose the scheduler; the proposer's set-up, which
becomes ours where there is something to do; and the model runner's call of it. Nothing else of vLLM changes.
"""

import functools
import logging
import os
from typing import Any

from dsl_train.base.records import DslError
from dsl_train.vllm.mended import mend_sampling_on_cpus
from dsl_train.vllm.settings import Settings
from dsl_train.vllm.statistics import Statistics, share_statistics

_LOG = logging.getLogger("vllm.dsl_train")  # vLLM shows loggers of its own name


def register() -> None:
    """Extend vLLM in this process. Called twice, it does nothing the second time. DSL_TRAIN=off is heeded whenever an
    engine is made."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.spec_decode.draft_model import DraftModelProposer

    if hasattr(EngineArgs.create_engine_config, "__wrapped__"):
        return
    EngineArgs.create_engine_config = _with_synchronous_scheduling(EngineArgs.create_engine_config)
    DraftModelProposer.__init__ = _that_knows_its_runner(DraftModelProposer.__init__)
    DraftModelProposer.load_model = _with_lookahead(DraftModelProposer.load_model)


def why_left_alone(config: Any) -> str | None:
    """What of a configuration (`VllmConfig`) our lookahead cannot serve; None if it can."""
    spec, parallel = config.speculative_config, config.parallel_config
    reasons = {
        "scheduling is asynchronous": config.scheduler_config.async_scheduling,
        "the second model runner is in use (VLLM_USE_V2_MODEL_RUNNER=1)": config.use_v2_model_runner,
        "the draft has a vocabulary of its own": spec.use_heterogeneous_vocab,
        "drafting is parallel": spec.parallel_drafting,
        "a schedule of lookaheads by batch size is given": spec.num_speculative_tokens_per_batch_size,
        "the pipeline has several stages": parallel.pipeline_parallel_size > 1,
        "tensors are parallel": parallel.tensor_parallel_size > 1,
        "data is parallel": parallel.data_parallel_size > 1,
        "the target keeps a recurrent state": config.model_config.is_hybrid,
        "the target reads more than text": config.model_config.supports_multimodal_inputs,
        "LoRA is on": config.lora_config is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _with_synchronous_scheduling(create: Any) -> Any:
    """Lookaheads that vary need the scheduler to wait for the drafted tokens, and the first model runner."""

    @functools.wraps(create)
    def create_engine_config(args: Any, *rest: Any, **named: Any) -> Any:
        settings, spec = Settings.from_environment(), args.speculative_config or {}
        if settings and spec.get("method") == "draft_model" and settings.serves(str(spec.get("model"))):
            if args.async_scheduling is None:
                args.async_scheduling = False
            os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
            share_statistics()
        return create(args, *rest, **named)

    return create_engine_config


def _that_knows_its_runner(set_up: Any) -> Any:
    @functools.wraps(set_up)
    def __init__(proposer: Any, vllm_config: Any, device: Any, runner: Any = None) -> None:  # noqa: N807
        set_up(proposer, vllm_config=vllm_config, device=device, runner=runner)
        proposer.runner = runner

    return __init__


def _with_lookahead(load: Any) -> Any:
    """After the draft is loaded, the proposer becomes ours, if it can serve the configuration."""

    @functools.wraps(load)
    def load_model(proposer: Any, target: Any) -> None:
        load(proposer, target)
        settings, config = Settings.from_environment(), proposer.vllm_config
        draft = proposer.draft_model_config.model
        if settings is None:
            _LOG.info("dsl_train: DSL_TRAIN=off, vLLM drafts by itself")
            return
        if not settings.serves(draft):
            _LOG.info("dsl_train: draft %s has no dsl folder, vLLM drafts by itself", draft)
            return
        reason = why_left_alone(config)
        if reason:
            _LOG.warning("dsl_train: %s, so vLLM drafts by itself with a constant lookahead", reason)
            return
        try:
            decision = settings.decision(config, target, proposer.model)
        except DslError as error:
            raise ValueError(f"dsl_train: {error}") from error  # vLLM shows it and stops
        from dsl_train.vllm.proposer import LookaheadProposer  # a subclass of what this module extends

        proposer.__class__ = LookaheadProposer
        proposer.begin_service(decision, Statistics(_LOG))
        _serve(proposer.runner)
        if proposer.device.type == "cpu":
            mend_sampling_on_cpus()
        _LOG.info(
            "dsl_train: policy %s decides the lookahead of each request, at most %d tokens",
            *(decision.name, config.speculative_config.num_speculative_tokens),
        )

    return load_model


def _serve(runner: Any) -> None:
    """Of this model runner alone: blocks come from our proposer, also near the end of the context, where vLLM would
    verify zeros."""

    def propose(scheduler_output: Any, sampled: Any, sampling: Any, *states: Any) -> list[list[int]]:
        verified, metadata = states[3], states[4]
        runner._draft_probs = runner._draft_prob_req_ids = None
        blocks = runner.drafter.vllm_propose(scheduler_output, sampled, sampling, verified, metadata.block_table_tensor)
        probs = runner.drafter.take_last_draft_probs()
        if probs is not None:
            runner._draft_probs, runner._draft_prob_req_ids = probs, runner.input_batch.req_ids.copy()
        return blocks

    def fits(metadata: Any) -> bool:
        return metadata is not None

    runner.propose_draft_token_ids, runner._input_fits_in_drafter = propose, fits
