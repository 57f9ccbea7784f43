"""A trained predictor in service: reads an artifact folder, answers in microseconds. The only door to onnxruntime.

onnxruntime opens the file, answers for many rows at once, and for single ones where `light.py` cannot. Imports numpy
and onnxruntime, no torch. Letters: N rows, F features of the schema, f of them used by this predictor.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from dsl_train.base import schema
from dsl_train.base.records import DslError
from dsl_train.predictor.light import LightNetwork, initializers

ONNX, CONFIG, CARD = "predictor.onnx", "config.json", "README.md"
#: Subfolder of a draft model's folder in which its predictor is shipped. Never the root: other engines look there.
SHIPPED = "dsl"
FORMAT_VERSION = 1
_LOG = logging.getLogger(__name__)
_REQUIRED = ("format_version", "schema", "pair", "threshold_table", "max_lookahead")


@dataclass(frozen=True)
class ThresholdTable:
    """The solved stop rule: another token iff survival > threshold(c_eff)."""

    c_eff: tuple[float, ...]
    """Price of a draft token in target steps, rising."""
    threshold: tuple[float, ...]

    def at(self, c_eff: float) -> float:
        """Linear between the solved prices, constant outside."""
        return float(np.interp(c_eff, self.c_eff, self.threshold))


class Predictor:
    """Survival of a feature vector. Not for several threads at once: buffers are reused."""

    def __init__(self, session: onnxruntime.InferenceSession, config: dict[str, Any], folder: Path) -> None:
        self.session, self.config, self.folder = session, config, folder
        self.names: tuple[str, ...] = tuple(config["schema"]["names"])
        self.max_lookahead: int = config["max_lookahead"]
        table = config["threshold_table"]
        self.table = ThresholdTable(tuple(table["c_eff"]), tuple(table["threshold"]))
        self._columns = np.array([schema.FEATURE_NAMES.index(name) for name in self.names])
        self._light = _light_network(folder / ONNX, self._survivals, self._columns, self.names)

    @classmethod
    def load(cls, folder: str | Path) -> "Predictor":
        """Open an artifact folder. Raises DslError if it is missing, damaged or made for another schema."""
        folder = Path(folder)
        config = read_config(folder)
        session = open_session(folder / ONNX)
        _check_schema(folder, config["schema"], session.get_modelmeta().custom_metadata_map)
        return cls(session, config, folder)

    def check_pair(self, target: Mapping[str, Any], draft: Mapping[str, Any]) -> None:
        """Compare with the pair in service: `architecture`, `vocab_size` and, where both sides saw the same version of
        transformers, `config_hash`. Raises DslError naming the first difference; other weights are only warned of."""
        keys = ["architecture", "vocab_size"]
        if self.config.get("versions", {}).get("transformers") == _installed("transformers"):
            keys.append("config_hash")
        for role, model in (("target", target), ("draft", draft)):
            trained = self.config["pair"][role]
            for key in keys:
                if key in trained and key in model and trained[key] != model[key]:
                    raise DslError(
                        f"predictor {self.folder} was trained for {role} {trained.get('id')} ({key} {trained[key]}), "
                        f"but this {role} is {model.get('id')} ({key} {model[key]}); use that pair, "
                        f"or train a predictor for this one with dsl-collect and dsl-train"
                    )
            revisions = trained.get("revision"), model.get("revision")
            if all(revisions) and revisions[0] != revisions[1]:
                _LOG.warning(
                    "predictor %s was trained for %s %s of revision %s, this one has revision %s; it stays correct, "
                    "but train it again if acceptance has changed",
                    *(self.folder, role, trained.get("id"), *revisions),
                )

    def survival(self, vector: np.ndarray) -> float:
        """P(everything drafted and the next token are accepted); `vector` [F] float32 in schema order."""
        if self._light is None:
            return float(self._survivals(vector[None, self._columns])[0])
        return self._light.survival(vector)

    def survival_batch(self, vectors: np.ndarray) -> np.ndarray:
        """[N, F] -> [N] float32."""
        return self._survivals(np.ascontiguousarray(vectors[:, self._columns], dtype=np.float32))

    def threshold(self, c_eff: float) -> float:
        """Smallest survival at which another token is worth `c_eff` target steps."""
        return self.table.at(c_eff)

    def _survivals(self, inputs: np.ndarray) -> np.ndarray:  # [N, f] -> [N]
        return self.session.run(["survival"], {"features": inputs})[0]


def shipped_with(draft: str | Path) -> Path | None:
    """Folder of the predictor beside a draft model; None if there is none."""
    folder = Path(draft) / SHIPPED
    return folder if (folder / CONFIG).is_file() else None


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """One thread, sequential: the network is too small for more. Raises DslError if the file is missing or damaged."""
    if not path.is_file():
        raise DslError(f"{path} does not exist; train a predictor with dsl-train, or name the folder that holds one")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # failures are raised; no second report from C++
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen classes for "cannot be read"
        raise DslError(
            f"{path} ({path.stat().st_size} bytes) is damaged or no ONNX model: {str(error).splitlines()[0]}; "
            f"copy it again or write it anew with dsl-train --export_only"
        ) from error


def _light_network(
    path: Path, survivals: Callable[[np.ndarray], np.ndarray], columns: np.ndarray, names: tuple[str, ...]
) -> LightNetwork | None:
    """The quick way to the same answers; None where the file holds a network of another form."""
    try:
        position = names.index("position") if "position" in names else None
        network = LightNetwork(initializers(path.read_bytes()), columns.tolist(), position)
    except (KeyError, IndexError, ValueError):
        return None
    rows = np.random.default_rng(0).normal(scale=5.0, size=(32, len(schema.FEATURE_NAMES))).astype(np.float32)
    expected = survivals(np.ascontiguousarray(rows[:, columns]))
    agrees = np.allclose([network.survival(row) for row in rows], expected, rtol=0, atol=1e-5)
    return network if agrees else None


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of an artifact. Raises DslError if it is missing, damaged, foreign or of another format."""
    path = folder / CONFIG
    if not path.is_file():
        raise DslError(f"no predictor in {folder}: {CONFIG} is missing; train one with dsl-train --output {folder}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DslError(f"{path} is damaged ({error}); copy it again or run dsl-train --export_only") from error
    missing = [key for key in _REQUIRED if not isinstance(config, dict) or key not in config]
    if missing:
        raise DslError(f"{path} is not a predictor's (no {', '.join(missing)}); name a folder that dsl-train wrote")
    if config["format_version"] != FORMAT_VERSION:
        wrote = config.get("versions", {}).get("dsl-train")
        raise DslError(
            f"{path} has format {config['format_version']}, this build reads {FORMAT_VERSION}; "
            f"install the dsl-train that wrote it ({wrote}) or train anew"
        )
    return config


def _check_schema(folder: Path, described: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    names: Sequence[str] = described["names"]
    known = all(name in schema.FEATURE_NAMES for name in names)
    ours = schema.fingerprint(tuple(names)) if known else "some features unknown"
    if described["fingerprint"] != ours:
        raise DslError(
            f"{folder / ONNX} expects {len(names)} features (schema v{described['version']}: "
            f"{described['fingerprint']}) but this build computes {len(schema.FEATURE_NAMES)} "
            f"(schema v{schema.SCHEMA_VERSION}: {ours}); "
            f"train it again with dsl-train, or install the version that wrote it"
        )
    inside = (metadata.get("schema_fingerprint"), json.loads(metadata.get("feature_names", "[]")))
    if inside != (described["fingerprint"], list(names)):
        raise DslError(
            f"{folder / ONNX} was exported for {len(inside[1])} features (schema {inside[0]}) but its {CONFIG} "
            f"describes {len(names)} (schema {described['fingerprint']}): files of two predictors; "
            f"copy both from one folder"
        )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
