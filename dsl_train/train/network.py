"""The network that turns raw features into survival; scaling and calibration are part of its graph.

Letters: N rows, F features. Knows names and units from the schema; knows neither training nor files.
"""

import numpy as np
import torch
from torch import nn

from dsl_train.features.entries import FEATURES

#: Probabilities are clipped this far from 0 and 1 before their logit is taken.
PROB_CLIP = 1e-4
#: Standardised inputs are clipped to this many standard deviations: an unusual text must not drive the network far off.
INPUT_CLIP = 6.0
#: Positions calibrated one by one; later positions share the last one's shift.
POSITIONS = 16


class SurvivalNetwork(nn.Module):
    """Input stage (logits of probabilities, standardisation), MLP, calibration; `names` are its F features in order."""

    is_prob: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    slope: torch.Tensor
    shift: torch.Tensor

    def __init__(self, names: tuple[str, ...], hidden: tuple[int, ...]) -> None:
        super().__init__()
        units = {feature.name: feature.unit for feature in FEATURES}
        self.register_buffer("is_prob", torch.tensor([units[name] == "prob" for name in names]))  # [F]
        self.register_buffer("mean", torch.zeros(len(names)))
        self.register_buffer("scale", torch.ones(len(names)))
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("shift", torch.zeros(POSITIONS))
        self._position = names.index("position") if "position" in names else None
        layers: list[nn.Module] = []
        for width_in, width in zip((len(names), *hidden), hidden, strict=False):
            layers += [nn.Linear(width_in, width), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear((len(names), *hidden)[-1], 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Calibrated logit of the survival [N] of raw features [N, F]."""
        return self.slope * self.mlp(self.inputs(features)).squeeze(-1) + self._shifts(features)

    def inputs(self, features: torch.Tensor) -> torch.Tensor:
        """The MLP's inputs for raw features [N, F]."""
        return ((self._linearise(features) - self.mean) / self.scale).clamp(-INPUT_CLIP, INPUT_CLIP)

    @property
    def sees_position(self) -> bool:
        return self._position is not None

    def survival(self, features: torch.Tensor) -> torch.Tensor:
        """P(all drafted tokens and the next one are accepted) [N], range (0, 1)."""
        return self(features).sigmoid()

    @torch.no_grad()
    def standardise(self, features: torch.Tensor) -> None:
        """Set mean and scale of the input stage from raw training features [N, F]; constant features get scale 1."""
        inputs = self._linearise(features)
        self.mean.copy_(inputs.mean(0))
        scale = inputs.std(0, correction=0)
        self.scale.copy_(torch.where(scale > 1e-6, scale, torch.ones_like(scale)))

    @torch.no_grad()
    def calibrate(self, slope: float, shift: np.ndarray) -> None:
        """Set the last stage: logit -> slope * logit + shift of the position; `shift` [POSITIONS]."""
        self.slope.fill_(slope)
        self.shift.copy_(torch.from_numpy(shift))

    def _shifts(self, features: torch.Tensor) -> torch.Tensor:
        """[N] shift of each row's position; a network without the feature `position` uses the first one."""
        if self._position is None:
            return self.shift[0]
        position = features[:, self._position].clamp(0, POSITIONS - 1).long()
        return self.shift.index_select(0, position)  # square brackets would lose its name in the ONNX file

    def _linearise(self, features: torch.Tensor) -> torch.Tensor:
        probs = features.clamp(PROB_CLIP, 1.0 - PROB_CLIP)
        return torch.where(self.is_prob, probs.log() - (1.0 - probs).log(), features)
