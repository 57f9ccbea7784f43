"""The policy of two loaded models: given, by name, or learned with the threshold that pays here."""

from pathlib import Path
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from dsl_train.api.serving import choose_policy, find_predictor
from dsl_train.base.policy import Policy
from dsl_train.base.records import DslError
from dsl_train.pair.identity import ModelIdentity, describe_model
from dsl_train.pair.loading import Pair
from dsl_train.policies.registry import make_policy
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.supported import check_kinds, check_pair_supported

#: Identifying a model means reading its weight files, which is done once.
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


def policy_across_tokenizers(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    policy: str | Policy,
    predictor: Predictor | str | Path | None,
    threshold: float | None,
) -> Policy:
    """The same for a draft with a tokenizer of its own. A learned policy may have been trained for it with this target
    or another, and its threshold has to be given, since drafting is not timed across tokenizers."""
    check_kinds(target, draft)
    if target.config.is_encoder_decoder:
        raise DslError(
            f"target {target.name_or_path} is an encoder-decoder, and the draft's encoder cannot read its tokens; "
            "choose a draft of the same tokenizer"
        )
    if not isinstance(policy, str):
        return policy
    if policy != "learned":
        return make_policy(policy)
    if threshold is None:
        raise DslError(
            f"what drafting pays for target {target.name_or_path} and draft {draft.name_or_path} is not measured, "
            "since their tokenizers differ; pass threshold=, or another policy= (heuristic, confidence:0.4,8, ...)"
        )
    identity = _identity(draft)
    found = predictor if isinstance(predictor, Predictor) else find_predictor(identity.id, predictor)
    found.check_pair(target=found.config["pair"]["target"], draft=identity.to_dict())
    return make_policy(policy, found, threshold)


def _identity(model: PreTrainedModel) -> ModelIdentity:
    if model not in _identities:
        _identities[model] = describe_model(model, str(model.name_or_path))
    return _identities[model]
