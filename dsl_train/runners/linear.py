"""A model's matrix times the states of a few tokens: on the CPU hardly slower than reading the matrix once.

Verification lives on this: a block of tokens should cost what one token does. torch's `linear` for few tokens leaves
cores idle and reads the matrix several times. So each matrix is kept once more, in the order in which oneDNN reads it,
if there is memory for that. One or two tokens in float32 are quicker still as two halves of the rows. All matrices of
SmolLM2-135M on 2 cores of an AMD EPYC with AVX-512, ms (docs/performance.md): float32, `linear` 45 for one token, 69
for four, 62 for eight; here 14, 23 and 25. bfloat16, `linear` 24, 27, 28; here 13, 11, 13. Letters: T tokens.
"""

import platform
from collections.abc import MutableMapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from dsl_train.base.memory import available_memory

#: Tokens in float32 that are multiplied by halves, and those that are where oneDNN's order is not kept.
_FEW_TOKENS, _SOME_TOKENS = 2, 8
#: For how many tokens oneDNN is told that its order is meant.
_EXPECTED_TOKENS = 4
#: Of the memory that is available, this part may go to matrices kept twice.
_SHARE_OF_MEMORY = 1 / 3
#: Rows that a fingerprint skips for each that it reads.
_ROWS = 16


class Layout:
    """A matrix in the order in which oneDNN reads it, shared by all who run the model."""

    def __init__(self) -> None:
        self.packed: torch.Tensor | None = None
        self._fingerprint: tuple[int, int] | None = None

    def follow(self, weight: torch.Tensor, parameters: tuple[torch.Tensor, ...]) -> None:
        """Be that of `weight` [out, in] as it is now: an optimizer, for instance, may have changed its parameters in
        place. Seen is what torch counts as a change of them, and whatever touches every sixteenth row."""
        version = sum(parameter._version for parameter in parameters if not parameter.is_inference())
        bits = weight.view(torch.int32 if weight.dtype is torch.float32 else torch.int16)
        found = version, int(bits[::_ROWS].sum())
        if found != self._fingerprint:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _EXPECTED_TOKENS)
            self._fingerprint = found


#: A parameter of a model -> the layout of the matrix that begins with it.
_layouts: MutableMapping[torch.Tensor, Layout] = WeakTensorKeyDictionary()


class Linear(NamedTuple):
    weight: torch.Tensor  # [out, in]
    bias: torch.Tensor | None
    parameters: tuple[torch.Tensor, ...]
    """What the weight is made of, one after the other."""
    layout: Layout

    @classmethod
    def of(cls, module: nn.Linear, num_outputs: int | None = None) -> "Linear":
        """All of it, or its first outputs."""
        bias = None if module.bias is None else module.bias[:num_outputs]
        return cls.joined(module.weight[:num_outputs], bias, module.weight)

    @classmethod
    def joined(cls, weight: torch.Tensor, bias: torch.Tensor | None, *parameters: torch.Tensor) -> "Linear":
        """The layout lives as long as the first parameter."""
        return cls(weight, bias, parameters, _layouts.setdefault(parameters[0], Layout()))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:  # [T, in] -> [T, out]
        packed = self.layout.packed
        if len(x) <= (_SOME_TOKENS if packed is None else _FEW_TOKENS) and _takes_halves(x, self.weight):
            outputs = _by_halves(x, self.weight.view(2, -1, x.shape[1]))
            return outputs if self.bias is None else outputs.add_(self.bias)
        if packed is None:
            return functional.linear(x, self.weight, self.bias)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, self.bias, "none", [], "")
        return product

    def follow(self) -> None:
        """Make the layout that of the weight as it is now."""
        self.layout.follow(self.weight, self.parameters)


def worth_packing(matrices: list[Linear]) -> bool:
    """Whether oneDNN multiplies such matrices here, and there is memory for keeping them twice."""
    weight = matrices[0].weight
    if not weight.is_cpu or platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype is torch.bfloat16:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
    elif weight.dtype is not torch.float32:
        return False
    missing = sum(matrix.weight.nbytes for matrix in matrices if matrix.layout.packed is None)
    return not missing or missing < _SHARE_OF_MEMORY * (available_memory() or 0)


def _takes_halves(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return x.is_cpu and x.dtype is torch.float32 and len(weight) % 2 == 0


def _by_halves(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # [T, in], [2, out / 2, in] -> [T, out]
    columns = x.t() if len(x) > 1 else x.repeat(2, 1).t()  # one column would be another, slower kernel's
    return torch.bmm(weight, columns.expand(2, -1, -1)).flatten(0, 1).t()[: len(x)].contiguous()
