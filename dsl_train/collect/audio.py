"""Audio in records: samples, features, or the file that holds them. Reads WAV and NumPy files, no compressed formats.

{"audio": "clip.wav"}   {"audio": "clip.npy"}                 files, seen from where the command runs
{"audio": {"array": [...], "sampling_rate": 16000}}           as `datasets` decodes it
{"audio": {"bytes": ..., "path": ...}}                        as `datasets` keeps it undecoded, of a WAV file
{"input_features": [[...], ...]}                              what a feature extractor made
"""

import hashlib
import io
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsl_train.base.records import DslError

AUDIO_COLUMNS = ("audio", "input_features")


@dataclass(frozen=True, eq=False)
class Audio:
    """A file is opened when it is needed: a thousand clips do not fit in memory."""

    path: str = ""
    values: np.ndarray | None = None
    """Samples [T] or features [M, T], float32; None: in the file."""
    sampling_rate: int | None = None
    """[Hz]; None if unknown."""

    @property
    def content_hash(self) -> str:
        """16 hex digits."""
        content = Path(self.path).read_bytes() if self.values is None else self.values.tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def load(self) -> tuple[np.ndarray, int | None]:
        """Values and sampling rate. Raises DslError for a file that cannot be read."""
        if self.values is not None:
            return self.values, self.sampling_rate
        try:
            if self.path.lower().endswith(".npy"):
                return _checked(self.path, np.load(self.path)), None
            return _read_wave(self.path, Path(self.path).read_bytes())
        except (OSError, ValueError) as error:
            raise DslError(f"{self.path} cannot be read ({error}); give a WAV file or a NumPy array") from error


def audio_of(where: str, value: Any) -> Audio:
    """Raises DslError, naming the record, for what is no audio that can be read here."""
    if isinstance(value, dict) and value.get("array") is not None:
        return Audio(values=_checked(where, value["array"]), sampling_rate=value.get("sampling_rate"))
    if isinstance(value, dict) and value.get("bytes"):
        samples, sampling_rate = _read_wave(where, value["bytes"])
        return Audio(values=samples, sampling_rate=sampling_rate)
    path = value.get("path") if isinstance(value, dict) else value
    if isinstance(path, str):
        if not Path(path).is_file():
            raise DslError(f"{where}: audio file {path} does not exist; name it as seen from the working directory")
        return Audio(path)
    if isinstance(value, list | np.ndarray):
        return Audio(values=_checked(where, value))
    raise DslError(
        f"{where}: audio as {type(value).__name__} cannot be read; give a WAV or .npy file, an array of samples or "
        "features, or transcribe with target.generate(..., custom_generate=dsl_train.hf.decode, draft_model=draft)"
    )


def _checked(where: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values, np.float32)
    except (ValueError, TypeError) as error:
        raise DslError(f"{where}: audio that is no array of numbers ({error})") from error
    array = array[0] if array.ndim == 3 and len(array) == 1 else array
    if array.ndim not in (1, 2) or not array.size:
        raise DslError(f"{where}: audio of shape {array.shape}; give samples [T] or features [M, T]")
    return array


def _read_wave(where: str, content: bytes) -> tuple[np.ndarray, int]:
    """Samples in [-1, 1), channels averaged, and their rate [Hz]."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise DslError(f"{where}: not a WAV file of integers ({error}); convert it to 16-bit PCM") from error
    if width != 2:
        raise DslError(f"{where}: a WAV file of {8 * width}-bit samples; convert it to 16-bit PCM")
    samples = np.frombuffer(frames, "<i2").reshape(-1, channels).mean(1) / 32768
    return _checked(where, samples), rate
