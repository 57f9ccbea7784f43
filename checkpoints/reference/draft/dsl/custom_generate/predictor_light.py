"""The survival network in eight numpy calls, its weights read from the ONNX file itself.

Between two forwards the caches are cold, and a runtime made for large graphs spends ten times its arithmetic on finding
its own code again (docs/performance.md). Knows the shape that `network.py` gives a network and nothing else: any other
is onnxruntime's. Imports numpy only. Letters: f inputs, h hidden units.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

#: Probabilities are clipped this far from 0 and 1 before their logit is taken.
PROB_CLIP = 1e-4
#: Standardised inputs are clipped to this many standard deviations: a strange text must not drive the network far away.
INPUT_CLIP = 6.0
_LOWEST, _HIGHEST = float(np.float32(PROB_CLIP)), float(np.float32(1.0 - PROB_CLIP))  # as the file's graph rounds them
_DTYPES = {1: np.float32, 9: np.bool_}  # TensorProto.DataType


class LightNetwork:
    """One row at a time. Not for several threads at once: its buffers are reused.

    Scaling is folded into the first layer, whose inputs are clipped before it instead of behind, calibration's slope
    into the last; a constant 1 among the inputs of each layer carries its bias. So a layer is two calls.
    """

    def __init__(self, tensors: dict[str, np.ndarray], columns: Sequence[int], position: int | None) -> None:
        """`columns` [f] are the inputs' places in a feature vector; `position`, the input that counts drafted tokens,
        if there is one. Raises KeyError if a tensor of the network is missing."""
        named = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
        self._probs: list[int] = np.flatnonzero(named["is_prob"]).tolist()
        self._shift: list[float] = named["shift"].reshape(-1).tolist()  # one, or by position
        self._position = position
        mean, scale = (named[name].astype(np.float64) for name in ("mean", "scale"))
        self._lowest, self._highest = (_with_one(mean + clip * scale) for clip in (-INPUT_CLIP, INPUT_CLIP))
        layers = [(named[f"mlp.{i}.weight"], named[f"mlp.{i}.bias"]) for i in _linear_layers(named)]
        weight, bias = layers[0]
        layers[0] = weight / scale, bias - weight @ (mean / scale)
        *hidden, last = map(_with_bias, layers)
        self._hidden = [
            (matrix, *np.zeros((2, len(matrix)), np.float32)) for matrix in hidden
        ]  # [h + 1, f + 1]; [h + 1]
        self._last = named["slope"] * last[0]
        self._columns = np.array([*columns, 0])  # the last one's value is overwritten by the clip
        self._inputs = np.empty(len(self._columns), np.float32)

    def survival(self, vector: np.ndarray) -> float:
        """Of a feature vector [F] float32."""
        inputs = vector.take(self._columns, out=self._inputs, mode="clip")  # the other modes buffer
        values = inputs.tolist()
        for i in self._probs:  # few: logarithms one by one are quicker than four passes of numpy
            prob = values[i]
            prob = _LOWEST if prob < _LOWEST else _HIGHEST if prob > _HIGHEST else prob
            inputs[i] = math.log(prob / (1.0 - prob))
        np.maximum(inputs, self._lowest, out=inputs)
        np.minimum(inputs, self._highest, out=inputs)
        for weight, buffer, zero in self._hidden:
            np.dot(weight, inputs, out=buffer)
            inputs = np.maximum(buffer, zero, out=buffer)
        at = 0 if self._position is None else int(values[self._position])
        logit = float(self._last.dot(inputs)) + self._shift[min(max(at, 0), len(self._shift) - 1)]
        return 0.5 * (1.0 + math.tanh(0.5 * logit))


def _with_one(values: np.ndarray) -> np.ndarray:  # [f] -> [f + 1] float32
    return np.append(values, 1.0).astype(np.float32)


def _with_bias(layer: Sequence[np.ndarray]) -> np.ndarray:  # [h, f], [h] -> [h + 1, f + 1] float32
    """The matrix of inputs and a 1 that gives the outputs and a 1."""
    weight, bias = layer
    constant = np.append(np.zeros(weight.shape[1]), 1.0)
    return np.vstack([np.column_stack([weight, bias]), constant]).astype(np.float32)


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
