"""A predictor artifact with an untrained network, for tests of what is around it."""

import json
from pathlib import Path

import numpy as np
import torch

from dsl_train.base import schema
from dsl_train.features import entries
from dsl_train.pair.loading import Pair
from dsl_train.predictor.runtime import CONFIG, FORMAT_VERSION, ONNX
from dsl_train.train.export import export_onnx
from dsl_train.train.network import SurvivalNetwork


def write_predictor(folder: Path, pair: Pair, max_lookahead: int = 8) -> Path:
    """Survivals scatter around one half; the threshold is 0.5 at every cost, so it draws now and then."""
    torch.manual_seed(0)
    names = entries.FEATURE_NAMES
    network = SurvivalNetwork(names, (8,))
    rows = torch.from_numpy(np.random.default_rng(0).random((32, len(names)), dtype=np.float32))
    network.standardise(rows)
    export_onnx(network, names, rows, folder / ONNX)
    config = {
        "format_version": FORMAT_VERSION,
        "schema": {"version": schema.SCHEMA_VERSION, "names": names, "fingerprint": entries.fingerprint(names)},
        "pair": pair.describe(),
        "threshold_table": {"c_eff": [0.1, 0.3], "threshold": [0.5, 0.5]},
        "max_lookahead": max_lookahead,
    }
    (folder / CONFIG).write_text(json.dumps(config))
    return folder
