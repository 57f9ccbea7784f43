"""Exports the trained network as one small ONNX file that gives the same numbers. The door to torch.onnx and onnx."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dsl_train.base import files, schema
from dsl_train.base.records import DslError
from dsl_train.features import entries
from dsl_train.predictor.runtime import open_session
from dsl_train.train.network import SurvivalNetwork

#: Largest difference between the network's survival and the file's.
TOLERANCE = 1e-5
MAX_BYTES = 200_000


class _Survival(nn.Module):
    def __init__(self, network: SurvivalNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.network.survival(features)


def export_onnx(network: SurvivalNetwork, names: tuple[str, ...], rows: torch.Tensor, path: Path) -> float:
    """Write `path` atomically: `features` [N, F] -> `survival` [N], schema in its metadata.

    `rows` [N, F] are real raw features; both versions must agree on them. Returns the largest difference. Raises
    DslError, and writes nothing, if the difference exceeds TOLERANCE or the file MAX_BYTES.
    """
    network = network.eval()
    with _quiet():
        program = torch.onnx.export(
            _Survival(network),
            (torch.zeros(2, len(names)),),
            input_names=["features"],
            output_names=["survival"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["schema_version"] = str(schema.SCHEMA_VERSION)
    program.model.metadata_props["schema_fingerprint"] = entries.fingerprint(names)
    program.model.metadata_props["feature_names"] = json.dumps(list(names))
    with files.replacing(path) as temporary:
        program.save(str(temporary), external_data=False)
        difference = _difference(network, rows, temporary)
        size = temporary.stat().st_size
        if not difference <= TOLERANCE:
            raise DslError(
                f"the exported {path.name} differs from the trained network by {difference:.2e} on {len(rows)} rows, "
                f"allowed are {TOLERANCE:.0e}; check the versions of torch, onnxscript and onnxruntime"
            )
        if size >= MAX_BYTES:
            raise DslError(f"{path.name} has {size} bytes, allowed are {MAX_BYTES}; choose smaller --hidden layers")
    return difference


def _difference(network: SurvivalNetwork, rows: torch.Tensor, path: Path) -> float:
    with torch.no_grad():
        expected = network.survival(rows).numpy()
    actual = open_session(path).run(None, {"features": rows.numpy()})[0]
    one = open_session(path).run(None, {"features": rows[:1].numpy()})[0]  # the shape in generation
    return float(max(np.abs(actual - expected).max(), np.abs(one - expected[:1]).max()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress lines on stdout and its notices about its own internals."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        level = logging.getLogger("torch.onnx").level
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
