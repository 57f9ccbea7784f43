"""The survival network in a dozen numpy calls, its weights read from the ONNX file itself.

Between two forwards the caches are cold, and a runtime made for large graphs spends ten times its arithmetic on finding
its own code again (docs/performance.md). Knows the shape that `network.py` gives a network and nothing else: any other
is onnxruntime's. Imports numpy only. Letters: f inputs, h hidden units.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

#: Probabilities are clipped this far from 0 and 1 before their logit is taken.
PROB_CLIP = 1e-4
#: Standardised inputs are clipped to this many standard deviations: a strange text must not drive the network far away.
INPUT_CLIP = 6.0
_DTYPES = {1: np.float32, 9: np.bool_}  # TensorProto.DataType


class LightNetwork:
    """One row at a time. Not for several threads at once: its buffers are reused."""

    def __init__(self, tensors: dict[str, np.ndarray], position: int | None) -> None:
        """`position` is the input that counts drafted tokens, if there is one. Raises KeyError if a tensor of the
        network is missing."""
        named = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
        self._probs: list[int] = np.flatnonzero(named["is_prob"]).tolist()
        self._mean, self._scale = named["mean"], named["scale"]
        self._slope, self._shift = float(named["slope"]), named["shift"].reshape(-1).tolist()  # one, or by position
        self._position = position
        *hidden, last = ((named[f"mlp.{i}.weight"], named[f"mlp.{i}.bias"]) for i in _linear_layers(named))
        self._hidden = [(weight, bias, np.empty_like(bias)) for weight, bias in hidden]  # [h, f], [h], [h]
        self._last_weight, self._last_bias = last[0][0], float(last[1][0])

    def survival(self, inputs: np.ndarray) -> float:
        """Of raw features [f] float32, which are overwritten."""
        at = 0 if self._position is None else int(inputs[self._position])
        shift = self._shift[min(max(at, 0), len(self._shift) - 1)]
        for i in self._probs:  # few: logarithms one by one are quicker than four passes of numpy
            prob = min(max(float(inputs[i]), PROB_CLIP), 1.0 - PROB_CLIP)
            inputs[i] = math.log(prob / (1.0 - prob))
        np.subtract(inputs, self._mean, out=inputs)
        np.divide(inputs, self._scale, out=inputs)
        np.maximum(inputs, -INPUT_CLIP, out=inputs)
        np.minimum(inputs, INPUT_CLIP, out=inputs)
        for weight, bias, buffer in self._hidden:
            np.dot(weight, inputs, out=buffer)
            np.add(buffer, bias, out=buffer)
            inputs = np.maximum(buffer, 0.0, out=buffer)
        logit = self._slope * (float(self._last_weight.dot(inputs)) + self._last_bias) + shift
        return 0.5 * (1.0 + math.tanh(0.5 * logit))


def _linear_layers(named: dict[str, np.ndarray]) -> list[int]:
    return sorted(int(name.split(".")[1]) for name in named if name.startswith("mlp.") and name.endswith(".weight"))


def initializers(model: bytes) -> dict[str, np.ndarray]:
    """The named float and bool tensors of an ONNX file: ModelProto.graph (7) .initializer (5)."""
    tensors = {}
    for graph in _values(model, 7):
        for tensor in _values(graph, 5):
            (name,), (kind,), shape, raw = (list(_values(tensor, field)) for field in (8, 2, 1, 9))
            if kind in _DTYPES and raw:
                tensors[bytes(name).decode()] = np.frombuffer(raw[0], _DTYPES[kind]).reshape(shape).copy()
    return tensors


def _values(message: bytes | memoryview, wanted: int) -> Iterator[Any]:
    """Values of one field of a protobuf message, in order: integers, or the bytes of whatever has a length."""
    view, at = memoryview(message), 0
    while at < len(view):
        key, at = _varint(view, at)
        kind = key & 7
        value: int | memoryview
        if kind == 0:
            value, at = _varint(view, at)
        else:
            length, at = _varint(view, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = view[at : at + length], at + length
        if key >> 3 == wanted:
            yield value


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Seven bits a byte, least significant first; the value and where it ends."""
    value = shift = 0
    while True:
        byte = view[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
