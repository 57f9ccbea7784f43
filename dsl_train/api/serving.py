"""What a pair is served with: the predictor given, or the draft's own, here or on the Hub; the policy made of it."""

import logging
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from dsl_train.base.cost import CostProfile, StopRule
from dsl_train.base.policy import Policy
from dsl_train.base.records import DslError
from dsl_train.costs.online import NUM_WIDTHS, OnlineCosts
from dsl_train.pair.hub import fetch_predictor, is_repository
from dsl_train.pair.loading import Pair
from dsl_train.policies.registry import make_policy
from dsl_train.predictor.runtime import CONFIG, Predictor, shipped_with

_LOG = logging.getLogger(__name__)
#: Of loaded models, target -> draft -> costs: what one generation learned serves the next.
_costs: WeakKeyDictionary[PreTrainedModel, WeakKeyDictionary[PreTrainedModel, OnlineCosts]] = WeakKeyDictionary()


def load_predictor(source: str | Path, revision: str | None = None) -> Predictor:
    """The predictor in a folder, in the `dsl` subfolder of a draft model's folder, or in a Hub repository: the draft's,
    or one of its own. `revision` is a branch, tag or commit of the repository.

    Raises DslError if there is none, if it is damaged or of another schema.
    """
    if not is_repository(str(source)):
        return Predictor.load(shipped_with(source) or source)
    folder = fetch_predictor(str(source), revision)
    if folder is None:
        raise DslError(
            f"repository {source} at revision {revision or 'main'} holds no predictor, neither in {source}/dsl nor at "
            "its root; name another revision=, or add one with dsl_train.push_predictor"
        )
    return Predictor.load(folder)


def find_predictor(draft_id: str, source: str | Path | None = None) -> Predictor:
    """The predictor at `source`, by default the one beside the draft: in its folder, or its repository's main branch
    (a loaded model does not know which revision it is of)."""
    if source is not None:
        return load_predictor(source)
    if not is_repository(draft_id):
        folder = shipped_with(draft_id) if draft_id else None
    else:
        folder = fetch_predictor(draft_id)
    if folder is None:
        raise DslError(
            f"draft {draft_id} has no predictor in its dsl folder; train one with dsl-collect and dsl-train --ship_to, "
            "name one with --predictor, or choose other policies (heuristic, static:4, ...)"
        )
    return Predictor.load(folder)


def choose_policy(
    pair: Pair,
    spec: str,
    predictor: Predictor | str | Path | None = None,
    threshold: float | None = None,
    costs: CostProfile | None = None,
) -> Policy:
    """The policy `NAME[:ARGS]`; the learned one with the draft's own predictor. Its threshold is the one given, or the
    one that pays at the `costs` given; without either it follows the costs that are met while generating.

    Raises DslError for a predictor of another pair.
    """
    if spec.partition(":")[0] != "learned":
        return make_policy(spec)
    found = predictor
    if found is None or isinstance(found, str | Path):
        found = find_predictor(pair.draft_identity.id, found)
    found.check_pair(**pair.describe())
    if found.draft_sampling == "greedy":
        _LOG.warning(
            "predictor %s was trained for a draft that proposes its most likely token, as vLLM's do: it does so here "
            "too, and sampled texts keep their law; a draft that draws is accepted more often, so for this loop train "
            "on traces of dsl-collect --draft_sampling probabilistic",
            found.folder,
        )
    if threshold is not None:
        return make_policy(spec, found, threshold)
    return make_policy(spec, found, costs.stop_rule(found.threshold) if costs else online_costs(pair, found))


def online_costs(pair: Pair, predictor: Predictor) -> OnlineCosts:
    """The costs of these loaded models, as learned so far by all their generations in this process."""
    by_draft = _costs.setdefault(pair.target, WeakKeyDictionary())
    return by_draft.setdefault(pair.draft, OnlineCosts(_prior(pair, predictor)))


def costs_in_use(policy: Policy) -> dict[str, Any] | None:
    """Times [seconds] and thresholds that a learned policy goes by at the moment; None where no costs are followed."""
    costs: CostProfile | None = getattr(policy, "costs", None)
    if costs is None:
        return None
    rule: StopRule = policy.rule  # type: ignore[attr-defined]  # whoever follows costs has one
    return {
        "draft_step": costs.draft_step,
        "target_step": costs.target_step,
        "c": costs.c,
        "round_overhead": costs.round_overhead,
        "verification": [costs.verification(width) for width in range(1, NUM_WIDTHS + 1)],
        "threshold": rule.another,
        "thresholds": list(rule.thresholds),
    }


def _prior(pair: Pair, predictor: Predictor) -> CostProfile:
    """What the pair is taken to cost before a round was timed: as recorded with the predictor, else drafting and
    verifying take as long as reading the weights, at a gigabyte in a tenth of a second."""
    recorded = predictor.config.get("cost")
    if not recorded:
        draft, target = (1e-10 * _bytes_read(model) for model in (pair.draft, pair.target))
        return CostProfile(draft, target)
    try:
        return CostProfile.from_dict(recorded)
    except (KeyError, TypeError, ValueError) as error:
        raise DslError(
            f"{predictor.folder / CONFIG} is damaged (cost: {error!r}); copy it again or run dsl-train --export_only"
        ) from error


def _bytes_read(model: PreTrainedModel) -> int:
    """Weights that one step reads: all but the embedding, of which it reads a row, unless the output shares it."""
    num_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    embedding: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]  # an Embedding
    output = model.get_output_embeddings()
    if output is not None and output.weight is embedding:
        return num_bytes
    return num_bytes - embedding.numel() * embedding.element_size()
