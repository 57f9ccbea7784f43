"""Ways to learn survival from decisions, for `study.py`: the product's own and those it was chosen from.

Every learner sees the same rows: it fits on `train`, stops early and calibrates on `val`, and answers for all rows.

    position k               0        1        2        (k tokens drafted, all of them accepted so far)
    forecast head            a1       a2       a3       next one accepted, given that
    review head                       a1       a2       last one accepted, given that those before it were
    product                  forecast(k) * review(1) * ... * review(k)

Letters: N decisions, F features of the chosen names.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dsl_train.features import entries
from dsl_train.traces.blocks import soft_survival
from dsl_train.traces.decisions import Decisions
from dsl_train.train import metrics
from dsl_train.train.data import split_by_prompt
from dsl_train.train.network import POSITIONS, SurvivalNetwork

HIDDEN = (64, 64)
LEARNING_RATE, BATCH_SIZE = 5e-3, 2048
_LOOK_AHEAD = 65_536  # rows answered at once


@dataclass(frozen=True, eq=False)
class Rows:
    """Decisions of training and validation prompts, then those of the test prompts: one matrix."""

    features: np.ndarray
    """[N, F of the whole schema] float32"""
    hard: np.ndarray
    """[N] bool: survival, as drawn in hindsight."""
    soft: np.ndarray
    """[N] float32: probability of survival before the last draw (`soft_survival`)."""
    position: np.ndarray
    """[N] int64"""
    run: np.ndarray
    """[N] int64: accepted drafts from the decision's start on."""
    train: np.ndarray
    """Row numbers; so are `val` and `test`."""
    val: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, known: Decisions, unseen: Decisions, is_val: np.ndarray) -> "Rows":
        """`is_val` [Q of known]: sequences of validation prompts."""
        both = (known, unseen)
        here = np.arange(len(known))
        return cls(
            features=np.concatenate([d.features for d in both]),
            hard=np.concatenate([d.survival for d in both]),
            soft=np.concatenate([soft_survival(d) for d in both]),
            position=np.concatenate([d.position for d in both]).astype(np.int64),
            run=np.concatenate([np.repeat(d.run, d.num_decisions) for d in both]).astype(np.int64),
            train=here[~is_val[known.sequence]],
            val=here[is_val[known.sequence]],
            test=len(known) + np.arange(len(unseen)),
        )


def validation_sequences(known: Decisions, seed: int) -> np.ndarray:
    """[Q] bool: the same tenth of the prompts that `dsl-train` validates on."""
    return split_by_prompt(known.prompt_ids, seed) == 1


@dataclass(frozen=True)
class Learner:
    """A network on the chosen features. Answers [N] survival of all rows."""

    names: tuple[str, ...] = entries.FEATURE_NAMES
    hidden: tuple[int, ...] = HIDDEN
    epochs: int = 10
    seed: int = 0

    def inputs(self, rows: Rows) -> torch.Tensor:
        columns = [entries.FEATURE_NAMES.index(name) for name in self.names]
        return torch.from_numpy(np.ascontiguousarray(rows.features[:, columns]))

    def direct(self, rows: Rows, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """One head for survival, labels [N] hard or soft."""
        network = SurvivalNetwork(self.names, self.hidden)
        inputs = self._fit(network, rows, self.inputs(rows), labels[:, None], np.ones((len(labels), 1)), weights)
        return _calibrated(_answers(network, inputs)[:, 0], rows)

    def product(self, rows: Rows) -> np.ndarray:
        """Reviewed acceptances so far times the forecast of the next one."""
        review, forecast = self.acceptances(rows)
        earlier = running_sum(review, rows.position)
        return _calibrated(earlier + review + forecast, rows, logits=False)

    def combined(self, rows: Rows) -> np.ndarray:
        """Direct, with the product of the reviewed acceptances as one more input."""
        review, _ = self.acceptances(rows)
        product = running_sum(review, rows.position) + review
        network = SurvivalNetwork((*self.names, "block_log_prob"), self.hidden)  # the extra input is a log-probability
        extra = torch.from_numpy(product.astype(np.float32))[:, None]
        inputs = torch.cat([self.inputs(rows), extra], dim=1)
        inputs = self._fit(network, rows, inputs, rows.soft[:, None], np.ones((len(product), 1)))
        return _calibrated(_answers(network, inputs)[:, 0], rows)

    def auxiliary(self, rows: Rows) -> np.ndarray:
        """Direct, the same trunk learning both acceptances beside it."""
        labels, known = _acceptance_labels(rows)
        labels = np.column_stack([rows.soft, labels])
        known = np.column_stack([np.ones(len(labels)), 0.5 * known])
        network = _with_heads(SurvivalNetwork(self.names, self.hidden), 3)
        inputs = self._fit(network, rows, self.inputs(rows), labels, known)
        return _calibrated(_answers(network, inputs)[:, 0], rows)

    def acceptances(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Log of the review (0 at position 0) and of the forecast, each [N]."""
        labels, known = _acceptance_labels(rows)
        network = _with_heads(SurvivalNetwork(self.names, self.hidden), 2)
        inputs = self._fit(network, rows, self.inputs(rows), labels, known)
        logs = -np.logaddexp(0.0, -_answers(network, inputs).astype(np.float64))  # log sigmoid
        return np.where(rows.position > 0, logs[:, 0], 0.0), logs[:, 1]

    def _fit(
        self,
        network: SurvivalNetwork,
        rows: Rows,
        inputs: torch.Tensor,
        labels: np.ndarray,
        known: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> torch.Tensor:
        """Train on `labels` [N, heads] where `known` [N, heads] is positive, as `predictor/module.py` does, and keep
        the epoch of the smallest validation loss. Returns the inputs, for chaining."""
        torch.manual_seed(self.seed)
        for layer in network.mlp:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        train, val = torch.from_numpy(rows.train), torch.from_numpy(rows.val)
        targets = torch.from_numpy(np.asarray(labels, dtype=np.float32))
        masks = torch.from_numpy(np.asarray(known if weights is None else known * weights[:, None], dtype=np.float32))
        network.standardise(inputs[train])
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
        steps = self.epochs * -(-len(train) // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15)
        generator, best = torch.Generator().manual_seed(self.seed), (np.inf, network.state_dict())
        for _ in range(self.epochs):
            for batch in train[torch.randperm(len(train), generator=generator)].split(BATCH_SIZE):
                loss = _loss(network, inputs[batch], targets[batch], masks[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
            with torch.no_grad():
                loss = float(_loss(network, inputs[val], targets[val], masks[val]))
            if loss < best[0]:
                best = loss, {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(best[1])
        return inputs


def boosting(rows: Rows, names: tuple[str, ...], seed: int) -> np.ndarray:
    """scikit-learn's gradient boosted trees on hard labels."""
    columns = [entries.FEATURE_NAMES.index(name) for name in names]
    model = HistGradientBoostingClassifier(max_iter=200, max_leaf_nodes=31, learning_rate=0.1, random_state=seed)
    model.fit(rows.features[rows.train][:, columns], rows.hard[rows.train])
    return _calibrated(model.decision_function(rows.features[:, columns]), rows)


def logistic(rows: Rows, names: tuple[str, ...], seed: int) -> np.ndarray:
    """Logistic regression, standardised: the floor of `dsl-train`."""
    columns = [entries.FEATURE_NAMES.index(name) for name in names]
    values = rows.features[:, columns]
    return metrics.logistic_floor(values[rows.train], rows.hard[rows.train], values, seed)


def running_sum(values: np.ndarray, position: np.ndarray) -> np.ndarray:
    """[N] sum of `values` over the earlier decisions of the same round; rows lie in the order of `Decisions`."""
    before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
    first = np.arange(len(values)) - position
    return before - before[first]


def _acceptance_labels(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N, 2] of review and forecast, and where each is known [N, 2]: only rounds that got so far tell."""
    labels = np.column_stack([rows.run >= rows.position, np.where(rows.run >= rows.position, rows.soft, 0.0)])
    known = np.column_stack([(rows.run >= rows.position - 1) & (rows.position > 0), rows.run >= rows.position])
    return labels, known


def _with_heads(network: SurvivalNetwork, num_heads: int) -> SurvivalNetwork:
    last = network.mlp[-1]
    assert isinstance(last, nn.Linear)
    network.mlp[-1] = nn.Linear(last.in_features, num_heads)
    return network


def _loss(network: SurvivalNetwork, inputs: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    logits = network.mlp(network.inputs(inputs))
    total = binary_cross_entropy_with_logits(logits, targets, weight=masks, reduction="sum")
    return total / masks[:, 0].sum().clamp_min(1.0)


@torch.no_grad()
def _answers(network: SurvivalNetwork, inputs: torch.Tensor) -> np.ndarray:  # [N, heads] logits
    return torch.cat([network.mlp(network.inputs(part)) for part in inputs.split(_LOOK_AHEAD)]).numpy()


def _calibrated(estimate: np.ndarray, rows: Rows, logits: bool = True) -> np.ndarray:
    """Survival [N] by a slope, and a shift for each position, fitted on the validation rows as `predictor/fit.py` does;
    `estimate` [N] is a logit, or a log-probability."""
    if not logits:
        estimate = estimate - np.log(-np.expm1(np.minimum(estimate, -1e-6)))
    slope, shift = metrics.platt(estimate[rows.val], rows.hard[rows.val])
    logits, position = slope * estimate + shift, np.minimum(rows.position, POSITIONS - 1)
    logits += metrics.position_shifts(logits[rows.val], rows.hard[rows.val], position[rows.val], POSITIONS)[position]
    return 1.0 / (1.0 + np.exp(-np.clip(logits, -30.0, 30.0)))
