"""SpecDec++ (2405.19715): stop once some drafted token has probably been rejected, by a model of each one's acceptance.

The model is a small network on the features of this package; `replay/acceptance.py` fits it, numpy runs it. Letters:
F features, H hidden units.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsl_train.base import files
from dsl_train.base.policy import Needs, Policy
from dsl_train.base.records import DraftStep, DslError
from dsl_train.features import entries
from dsl_train.policies.register import register

_PROB_CLIP = 1e-4
_IS_PROB = np.array([feature.unit == "prob" for feature in entries.FEATURES])


@dataclass(frozen=True, eq=False)
class AcceptanceModel:
    """P(the drafted token is accepted | those before it were, features after it)."""

    mean: np.ndarray
    """[F] of the inputs: features, probabilities as logits."""
    scale: np.ndarray
    """[F]"""
    hidden_weights: np.ndarray
    """[F, H]"""
    hidden_bias: np.ndarray
    """[H]"""
    output_weights: np.ndarray
    """[H]"""
    output_bias: float

    def probs(self, features: np.ndarray) -> np.ndarray:
        """[..., F] in schema order -> [...], range (0, 1)."""
        inputs = (inputs_of(features) - self.mean) / self.scale
        hidden = np.maximum(0.0, inputs @ self.hidden_weights + self.hidden_bias)
        return 1.0 / (1.0 + np.exp(-np.clip(hidden @ self.output_weights + self.output_bias, -30.0, 30.0)))

    def save(self, path: Path) -> None:
        values = {name: np.asarray(value).tolist() for name, value in vars(self).items()}
        files.write_json(path, {"schema_fingerprint": entries.fingerprint(), **values})

    @classmethod
    def load(cls, path: Path) -> "AcceptanceModel":
        """Raises DslError if the file is missing, damaged or made for other features."""
        try:
            content = json.loads(path.read_text("utf-8"))
            found = content.pop("schema_fingerprint")
            bias = float(content.pop("output_bias"))
            model = cls(**{name: np.array(value) for name, value in content.items()}, output_bias=bias)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DslError(
                f"{path} holds no acceptance model ({error!r}); name a file that tuning `specdec++` on traces wrote"
            ) from error
        if found != entries.fingerprint():
            raise DslError(
                f"{path} was fitted for features {found}, this build computes {entries.fingerprint()}; fit it again"
            )
        return model


def inputs_of(features: np.ndarray) -> np.ndarray:
    """[..., F] float64: probabilities as clipped logits, everything else as it is."""
    features = features.astype(np.float64)
    probs = np.clip(features, _PROB_CLIP, 1.0 - _PROB_CLIP)
    return np.where(_IS_PROB, np.log(probs / (1.0 - probs)), features)


@register("specdec++", "FILE,THRESHOLD,CAP: stop once a rejection is likelier, by the acceptance model in FILE")
class SpecDecPolicy(Policy):
    """Stop once the product of the block's predicted acceptances is under 1 - threshold.

    A first token is always drafted. The published settings are 0.7 and 20.
    """

    needs: Needs = "features"

    def __init__(self, file: str, threshold: float = 0.7, max_lookahead: int = 20) -> None:
        self.name = f"specdec++:{threshold:g},{max_lookahead}"
        self.model = AcceptanceModel.load(Path(file))
        self.threshold, self.max_lookahead = threshold, max_lookahead
        self._product = 1.0

    def wants_another(self, step: DraftStep) -> bool:
        if step.position <= 1:  # transformers drafts a first token without asking
            self._product = 1.0
        if step.position == 0:
            return True
        self._product *= float(self.model.probs(step.features))
        return self._product >= 1.0 - self.threshold
