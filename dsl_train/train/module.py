"""How the network learns: binary cross-entropy on survival, AdamW with one learning-rate cycle."""

from typing import Any

import lightning
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dsl_train.train.data import Part
from dsl_train.train.network import SurvivalNetwork


class StopClassifier(lightning.LightningModule):
    """Trains a :class:`SurvivalNetwork`; checkpoints carry `names` and `hidden`, so that they can be loaded alone."""

    def __init__(self, names: tuple[str, ...], hidden: tuple[int, ...], learning_rate: float) -> None:
        super().__init__()
        self.save_hyperparameters({"names": list(names), "hidden": list(hidden), "learning_rate": learning_rate})
        self.learning_rate = learning_rate
        self.network = SurvivalNetwork(tuple(names), tuple(hidden))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.network(features)

    def training_step(self, batch: Part, index: int) -> torch.Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[1]))
        return loss

    def validation_step(self, batch: Part, index: int) -> None:
        self.log("val_loss", self._loss(batch), prog_bar=True, batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=1e-4)
        steps = max(2, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps, pct_start=0.15)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, batch: Part) -> torch.Tensor:
        features, survival, weight = batch
        return binary_cross_entropy_with_logits(self(features), survival, weight)
