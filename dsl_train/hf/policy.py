"""The policy of two loaded models: given, by name, or learned with the threshold that pays here."""

from pathlib import Path
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from dsl_train.api import choose_policy
from dsl_train.hf.families import check_pair_supported
from dsl_train.loading import ModelIdentity, Pair, describe_model
from dsl_train.policies.base import Policy
from dsl_train.predictor.runtime import Predictor

#: Who a model is takes reading its weight files: asked once.
_identities: WeakKeyDictionary[PreTrainedModel, ModelIdentity] = WeakKeyDictionary()


def policy_of(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    policy: str | Policy,
    predictor: Predictor | str | Path | None,
    threshold: float | None,
) -> Policy:
    """Raises DslError for models that cannot work together and for a predictor of another pair."""
    check_pair_supported(target, draft)
    if not isinstance(policy, str):
        return policy
    identities = (_identity(target), _identity(draft))
    pair = Pair(target, draft, None, *identities)  # type: ignore[arg-type]  # nothing here reads text
    return choose_policy(pair, policy, predictor, threshold)


def _identity(model: PreTrainedModel) -> ModelIdentity:
    if model not in _identities:
        _identities[model] = describe_model(model, str(model.name_or_path))
    return _identities[model]
