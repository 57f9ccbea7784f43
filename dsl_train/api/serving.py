"""What a pair is served with: the predictor given, or the draft's own, here or on the Hub; the policy made of it."""

from pathlib import Path

from dsl_train.base.policy import Policy
from dsl_train.base.records import DslError
from dsl_train.costs.profile import cached_profile
from dsl_train.pair.hub import fetch_predictor, is_repository
from dsl_train.pair.loading import Pair
from dsl_train.policies.registry import make_policy
from dsl_train.predictor.runtime import Predictor, shipped_with


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
    pair: Pair, spec: str, predictor: Predictor | str | Path | None = None, threshold: float | None = None
) -> Policy:
    """The policy `NAME[:ARGS]`; the learned one with the draft's own predictor and the threshold that pays here, unless
    given. Raises DslError for a predictor of another pair."""
    if spec.partition(":")[0] != "learned":
        return make_policy(spec)
    found = predictor
    if found is None or isinstance(found, str | Path):
        found = find_predictor(pair.draft_identity.id, found)
    found.check_pair(**pair.describe())
    if threshold is None:
        return make_policy(spec, found, cached_profile(pair, found).stop_rule(found.threshold))
    return make_policy(spec, found, threshold)
