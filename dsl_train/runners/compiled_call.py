"""A compiled graph, called directly.

torch.compile's entry to its graph, from the interpreter's frame to the order of the inputs, takes as long as a layer of
a small model. Here it is used once; the inputs that the graph was called with are kept, and from then on only those
that belong to a text are exchanged.
"""

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch

from dsl_train.runners.compiled_step import Buffers

Graph = Callable[[torch.Tensor, torch.Tensor, Buffers], Sequence[torch.Tensor]]
"""Token ids [T], positions [L] and a text's buffers -> logits [T, V] and readings [T, 3]."""


class GraphCall:
    """What inductor made of one :data:`Graph`, with its inputs in the order it wants them."""

    def __init__(self, graph: Callable[[list[Any]], Sequence[torch.Tensor]], inputs: list[Any], slots: dict[int, int]):
        """`slots`: places of `inputs` that each call fills, and the number in `_of_text` of what goes there."""
        self._graph, self._inputs, self._slots = graph, inputs, tuple(slots.items())

    @classmethod
    def behind(
        cls, compiled: Graph, token_ids: torch.Tensor, positions: torch.Tensor, buffers: Buffers
    ) -> "GraphCall | None":
        """Found by calling `compiled` once more. None if it is not one graph of inductor's over these inputs, constants
        and no more: then it is to be called as it is."""
        from torch._inductor.output_code import CompiledFxGraph  # heavy

        seen: list[tuple[CompiledFxGraph, list[Any]]] = []
        run = CompiledFxGraph.__call__

        def note(graph: CompiledFxGraph, inputs: Sequence[Any]) -> Any:
            seen.append((graph, list(inputs)))
            return run(graph, inputs)

        with patch.object(CompiledFxGraph, "__call__", note):
            compiled(token_ids, positions, buffers)
        if len(seen) != 1:
            return None
        [(graph, inputs)] = seen
        slots = _slots(inputs, _of_text(token_ids, positions, buffers))
        return None if slots is None else cls(graph, inputs, slots)

    def __call__(self, token_ids: torch.Tensor, positions: torch.Tensor, buffers: Buffers) -> Sequence[torch.Tensor]:
        inputs, given = self._inputs.copy(), _of_text(token_ids, positions, buffers)  # the graph empties its list
        for place, number in self._slots:
            inputs[place] = given[number]
        return self._graph(inputs)


def _of_text(token_ids: torch.Tensor, positions: torch.Tensor, buffers: Buffers) -> list[Any]:
    """All that differs from call to call: tensors and their free sizes."""
    tensors = [token_ids, positions, *buffers.keys, *buffers.values, buffers.cosines, buffers.sines]
    return [*tensors, len(positions), len(buffers.positions)]


def _slots(inputs: Sequence[Any], given: Sequence[Any]) -> dict[int, int] | None:
    """Which of `given` stands at which place of `inputs`: the same tensor, or an equal size. None if a size is of
    something else, or a tensor of the text is not among them."""
    tensors = {id(value): number for number, value in enumerate(given) if isinstance(value, torch.Tensor)}
    sizes = {value: number for number, value in enumerate(given) if isinstance(value, int)}
    slots = {place: tensors[id(value)] for place, value in enumerate(inputs) if id(value) in tensors}
    if set(slots.values()) != set(tensors.values()) or len(sizes) < len(given) - len(tensors):
        return None
    for place, value in enumerate(inputs):
        if isinstance(value, int):
            if value not in sizes:
                return None
            slots[place] = sizes[value]
    return slots
