"""What environment variables say, and the decision that follows for a pair of models that vLLM has loaded."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch

from dsl_train.api.serving import load_predictor
from dsl_train.base.cost import CostProfile, StopRule
from dsl_train.base.records import DslError
from dsl_train.pair.hub import fetch_predictor, is_repository
from dsl_train.policies.registry import make_policy
from dsl_train.predictor.runtime import Predictor, shipped_with
from dsl_train.vllm.costs import BatchCosts
from dsl_train.vllm.decision import Decision, EachOnItsOwn, LearnedTogether

_LOG = logging.getLogger("vllm.dsl_train")
#: Of a machine of which nothing is known: a gigabyte is read in a tenth of a second.
_SECONDS_PER_BYTE = 1e-10


@dataclass(frozen=True)
class Settings:
    """How vLLM drafts."""

    policy: str = "learned"
    predictor: str | None = None
    """A folder or a Hub repository; by default the draft's own `dsl` folder."""
    threshold: float | None = None
    """Of the learned policy; by default it follows from the costs that are met."""

    @classmethod
    def from_environment(cls) -> "Settings | None":
        """None where vLLM is to be left alone (DSL_TRAIN=off)."""
        told = os.environ.get
        if told("DSL_TRAIN", "on").lower() in ("off", "0", "false"):
            return None
        threshold = told("DSL_TRAIN_THRESHOLD")
        try:
            given = float(threshold) if threshold else None
        except ValueError:
            raise DslError(f"DSL_TRAIN_THRESHOLD must be a number, not {threshold!r}") from None
        return cls(told("DSL_TRAIN_POLICY", "learned"), told("DSL_TRAIN_PREDICTOR"), given)

    def find_predictor(self, draft: str) -> Predictor | None:
        """The one named, or the one beside the draft; None if there is none."""
        if self.predictor:
            return load_predictor(self.predictor)
        folder = fetch_predictor(draft) if is_repository(draft) else shipped_with(draft)
        return Predictor.load(folder) if folder else None

    def serves(self, draft: str) -> bool:
        """Whether there is anything to do for this draft."""
        return self.policy != "learned" or bool(self.predictor) or self.find_predictor(draft) is not None

    def decision(self, config: Any, target: torch.nn.Module, draft: torch.nn.Module) -> Decision:
        """For a pair that vLLM has loaded by its `config`. Raises DslError for a predictor of another pair and for an
        unknown policy."""
        if self.policy != "learned":
            make_policy(self.policy)
            return EachOnItsOwn(self.policy)
        spec = config.speculative_config
        predictor = self.find_predictor(spec.draft_model_config.model)
        if predictor is None:
            raise DslError(
                f"draft {spec.draft_model_config.model} has no predictor in its dsl folder; train one with dsl-collect "
                "and dsl-train --ship_to, or name one by DSL_TRAIN_PREDICTOR"
            )
        models = {"target": config.model_config, "draft": spec.draft_model_config}
        predictor.check_pair(**{role: _identity(model, predictor, role) for role, model in models.items()})
        check_drafting(predictor, spec.draft_sample_method)
        if self.threshold is not None:
            return LearnedTogether(predictor, StopRule.of(self.threshold))
        return LearnedTogether(predictor, BatchCosts(_prior(predictor, target, draft), predictor.threshold))


def check_drafting(predictor: Predictor, method: str) -> None:
    """Greedy requests and the law of the text are the same either way: other estimates are no reason to refuse."""
    trained = predictor.draft_sampling
    if trained is not None and trained != method:
        _LOG.warning(
            "dsl_train: predictor %s was trained for %s drafts, and vLLM makes %s ones under sampling: the text keeps "
            "its law, but the lookahead is less well chosen; set draft_sample_method to %s in --speculative-config, or "
            "train on traces of dsl-collect --draft_sampling %s",
            *(predictor.folder, trained, method, trained, method),
        )


def _identity(model: Any, predictor: Predictor, role: str) -> dict[str, Any]:
    """What vLLM's configuration tells: architecture and vocabulary. Weights are not looked at."""
    trained = predictor.config["pair"][role]
    return {
        "id": model.model,
        "architecture": (model.hf_config.architectures or [trained.get("architecture")])[0],
        "vocab_size": model.hf_text_config.vocab_size,
        "revision": trained.get("revision"),
    }


def _prior(predictor: Predictor, target: torch.nn.Module, draft: torch.nn.Module) -> CostProfile:
    """As recorded with the predictor, else in proportion to the bytes of the weights."""
    if predictor.config.get("cost"):
        return CostProfile.from_dict(predictor.config["cost"])
    draft_step, target_step = (
        _SECONDS_PER_BYTE * sum(weight.numel() * weight.element_size() for weight in model.parameters())
        for model in (draft, target)
    )
    return CostProfile(draft_step, target_step)
