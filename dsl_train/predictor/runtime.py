"""A trained predictor: reads an artifact folder, gives the survival of feature vectors. The only door to onnxruntime.

Imports numpy and onnxruntime, no torch. Letters: N rows, F features, f of them used by this predictor.
"""

import json
import logging
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from dsl_train.base import files, schema
from dsl_train.base.records import DslError, first_line
from dsl_train.features import entries

ONNX, CONFIG, CARD = "predictor.onnx", "config.json", "README.md"
#: Key of config.json: digest of predictor.onnx. Predictors of older versions have none.
ONNX_DIGEST = "onnx_sha256"
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
        """Interpolated linearly between the solved prices, constant outside."""
        return float(np.interp(c_eff, self.c_eff, self.threshold))


class Predictor:
    """Survival of feature vectors. Several threads may ask at once."""

    def __init__(self, session: onnxruntime.InferenceSession, config: dict[str, Any], folder: Path) -> None:
        self.session, self.config, self.folder = session, config, folder
        self.names: tuple[str, ...] = tuple(config["schema"]["names"])
        self.max_lookahead = operator.index(config["max_lookahead"])
        prices, thresholds = (tuple(map(float, config["threshold_table"][key])) for key in ("c_eff", "threshold"))
        self.table = ThresholdTable(prices, thresholds)
        drawn = config.get("draft_temperature", {"target": [1.0], "draft": [1.0]})
        self._temperatures = tuple(np.array(drawn[role], np.float64) for role in ("target", "draft"))
        self.draft_sampling: str | None = config.get("draft_sampling")
        """How the draft chose its tokens in training where the target sampled: `greedy`, its most likely one, or
        `probabilistic`; None if the target never did, or an older version does not say."""
        self._trained_on = {role: dict(config["pair"][role]) for role in ("target", "draft")}
        self._versions = dict(config.get("versions", {}))
        self._columns = np.array([entries.FEATURE_NAMES.index(name) for name in self.names])

    @classmethod
    def load(cls, folder: str | Path) -> "Predictor":
        """Open an artifact folder. Raises DslError if it is missing, damaged or made for another schema."""
        folder = Path(folder)
        config = read_config(folder)
        _check_digest(folder / ONNX, config.get(ONNX_DIGEST))
        session = open_session(folder / ONNX)
        try:
            _check_schema(folder, config["schema"], session.get_modelmeta().custom_metadata_map)
            return cls(session, config, folder)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DslError(
                f"{folder} is damaged ({type(error).__name__}: {first_line(error)}); copy it again or run dsl-train "
                "--export_only"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled as its folder, which is opened again: a session of onnxruntime cannot be."""
        return Predictor.load, (self.folder.resolve(),)

    def check_pair(self, target: Mapping[str, Any], draft: Mapping[str, Any]) -> None:
        """Compare with the pair in use: `architecture`, `vocab_size` and, if both sides saw the same version of
        transformers, `config_hash`. Raises DslError naming the first difference. Warns of other weights."""
        keys = ["architecture", "vocab_size"]
        if self._versions.get("transformers") == _installed("transformers"):
            keys.append("config_hash")
        for role, model in (("target", target), ("draft", draft)):
            trained = self._trained_on[role]
            for key in keys:
                if key in trained and key in model and trained[key] != model[key]:
                    raise DslError(
                        f"predictor {self.folder} was trained for {role} {trained.get('id')} ({key} {trained[key]}), "
                        f"but this {role} is {model.get('id')} ({key} {model[key]}); use that pair, "
                        f"or train a predictor for this one with dsl-collect and dsl-train"
                    )
            self._warn_of_other_weights(role, trained, model)

    def _warn_of_other_weights(self, role: str, trained: Mapping[str, Any], model: Mapping[str, Any]) -> None:
        """The revision of a folder is a hash of its weights, that of a Hub model its commit."""
        expected, found = trained.get("revision"), model.get("revision")
        if expected and expected != found:
            _LOG.warning(
                "predictor %s was trained for %s %s of revision %s, this one (%s) has %s; the text stays correct, "
                "but train the predictor again if acceptance has changed",
                *(self.folder, role, trained.get("id"), expected, model.get("id") or "without a name"),
                f"revision {found}" if found else "no known revision",
            )

    def survival(self, vector: np.ndarray) -> float:
        """P(everything drafted and the next token are accepted); `vector` [F] float32 in schema order."""
        return float(self._survivals(vector.take(self._columns)[None])[0])

    def survival_batch(self, vectors: np.ndarray) -> np.ndarray:
        """[N, F] -> [N] float32."""
        return self._survivals(np.ascontiguousarray(vectors[:, self._columns], dtype=np.float32))

    def threshold(self, c_eff: float) -> float:
        """Smallest survival at which another token is worth `c_eff` target steps."""
        return self.table.at(c_eff)

    def draft_temperature(self, temperature: float) -> float:
        """At which the draft drew in training where the target sampled at `temperature`: recorded, and between and
        beyond the recorded ones in the same proportion. Predictors of older versions know none but the target's."""
        target, draft = self._temperatures
        return temperature * float(np.interp(temperature, target, draft / target))

    def _survivals(self, inputs: np.ndarray) -> np.ndarray:  # [N, f] -> [N]
        return self.session.run(["survival"], {"features": inputs})[0]


def shipped_with(draft: str | Path) -> Path | None:
    """Folder of the predictor beside a draft model; None if there is none."""
    path = Path(draft)
    folder = (path.parent if path.is_file() else path) / SHIPPED
    return folder if (folder / CONFIG).is_file() else None


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """One thread, sequential: the network is too small for more. Raises DslError if the file is missing or damaged."""
    if not path.is_file():
        raise DslError(f"{path} does not exist; train a predictor with dsl-train, or name the folder that holds one")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # failures are raised, so the C++ library need not report them as well
    try:
        return onnxruntime.InferenceSession(
            path.read_bytes(),
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # after a failure it would print to stdout and try again
        )
    except Exception as error:  # onnxruntime has a dozen classes for "cannot be read"
        raise _damaged_onnx(path, f"is damaged or no ONNX model: {first_line(error)}") from error


def _check_digest(path: Path, recorded: str | None) -> None:
    if recorded is None or not path.is_file():
        return
    found = files.sha256(path)
    if found != recorded:
        raise _damaged_onnx(path, f"is damaged or of another predictor: sha256 {found}, its {CONFIG} says {recorded}")


def _damaged_onnx(path: Path, reason: str) -> DslError:
    return DslError(
        f"{path} ({path.stat().st_size} bytes) {reason}; copy both files again or write them anew with dsl-train "
        "--export_only"
    )


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
        versions = config.get("versions")
        wrote = versions.get("dsl-train") if isinstance(versions, dict) else None
        raise DslError(
            f"{path} has format {config['format_version']}, this build reads {FORMAT_VERSION}; "
            f"install the dsl-train that wrote it ({wrote}) or train anew"
        )
    broken = files.broken_seal(config)
    if broken:
        raise DslError(
            f"{path} is damaged or was edited ({broken}); copy it again or run dsl-train --export_only, or delete "
            f"the key {files.SEAL} to keep an edit"
        )
    return config


def _check_schema(folder: Path, described: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    names: Sequence[str] = described["names"]
    known = all(name in entries.FEATURE_NAMES for name in names)
    ours = entries.fingerprint(tuple(names)) if known else "some features unknown"
    if described["fingerprint"] != ours:
        raise DslError(
            f"{folder / ONNX} expects {len(names)} features (schema v{described['version']}: "
            f"{described['fingerprint']}) but this build computes {len(entries.FEATURE_NAMES)} "
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
