"""Compiled decoding on the CPU: graphs of fixed width over one text's buffers.

A graph has a fixed number of rows, so what is fed is padded to the next of WIDTHS; the text's length stays free, and
attention reads no more than the text. Going back is feeding from an earlier position. Letters: T tokens fed, V
vocabulary.
"""

import inspect
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional
from transformers import PreTrainedModel

from dsl_train.runners import llama
from dsl_train.runners.compiled_call import Graph, GraphCall
from dsl_train.runners.compiled_step import NARROW, Buffers, Network, forward
from dsl_train.runners.kv_cache import reserve
from dsl_train.runners.narrow_head import head_tokens

_log = logging.getLogger(__name__)
WIDTHS = (1, 2, 3, 4, 5, 6, 8, 10, 13)  # rows of the graphs; more tokens, a prompt above all, are fed uncompiled
DRAFT_WIDTHS = (1, 2)  # what a draft is fed: its own last token, and with it the one that verification added
_SAMPLE = 32  # tokens of the text that graphs are made with
_TOLERANCE = {torch.float32: 1e-3}  # of a graph's logits, relative to the largest; other precisions: 0.1


class NotCompilableError(Exception):
    """Why a model cannot be compiled here: half a sentence."""


class CompiledDecoder:
    """One text's buffers, and the graphs that all texts of a model share."""

    def __init__(self, graphs: "Graphs") -> None:
        self.graphs = graphs
        self._buffers = graphs.buffers(1)

    def logits(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:
        """Feed `token_ids` [T] at text positions `start` ...; logits after the last `keep` of them, [keep, V]."""
        return self._feed(token_ids, start, keep)[0]

    def read(self, token_ids: torch.Tensor, start: int, keep: int) -> list[list[float]]:
        """The same; of each row the most likely token, its log-probability and that of the next: worked out on the way,
        they cost next to nothing."""
        rows: list[list[float]] = self._feed(token_ids, start, keep)[1].tolist()
        return rows

    def _feed(self, token_ids: torch.Tensor, start: int, keep: int) -> list[torch.Tensor]:
        num_fed = len(token_ids)
        width = next((width for width in self.graphs.widths if width >= num_fed), max(num_fed, NARROW + 1))
        if start + width > len(self._buffers.positions):
            self._buffers = self.graphs.buffers(start + width, self._buffers, start)
        padded = functional.pad(token_ids, (0, width - num_fed)) if width > num_fed else token_ids
        rows = self.graphs.run(padded, start, self._buffers, keep + width - num_fed)
        return [row[:keep] for row in rows]  # the rest is padding's; what is fed next overwrites its keys

    def truncate(self, num_removed: int) -> int:
        """Nothing to do: what is fed next overwrites."""
        return num_removed

    def reset(self) -> None:
        """Nothing to do either."""


class Graphs:
    """A model's forward, compiled for each of `widths`, for the number of threads and the weights of now."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, widths: Sequence[int] = WIDTHS, backend: str = "inductor") -> None:
        """Raises NotCompilableError."""
        _check(model)
        self.widths = widths
        began, self._weights = time.perf_counter(), llama.LlamaLayers(model)
        self._network, self._compact = Network.of(self._weights), Network.of(self._weights, compact=True)
        self._num_proposed = head_tokens(model)
        self._graphs: dict[int, Graph] = {}
        try:
            self._make_all(backend)
        except (TorchDynamoException, torch._inductor.exc.InvalidCxxCompiler) as error:
            reason = " ".join(str(error).split())[:200]
            raise NotCompilableError(f"torch.compile cannot ({reason}); is a C++ compiler installed?") from error
        self.seconds = time.perf_counter() - began

    def run(self, token_ids: torch.Tensor, start: int, buffers: Buffers, keep: int) -> list[torch.Tensor]:
        """Feed `token_ids` [T] at text positions `start` ...; logits after the last `keep` of them, [keep, V], and
        their readings [keep, 3]."""
        width = len(token_ids)
        positions = buffers.positions[: start + width]
        if width in self._graphs:
            return [rows[width - keep :] for rows in self._graphs[width](token_ids, positions, buffers)]
        return list(forward(self._network, token_ids, positions, buffers, keep))

    @torch.inference_mode()
    def buffers(self, needed: int, old: Buffers | None = None, filled: int = 0) -> Buffers:
        """Room for `needed` tokens at least; the first `filled` are those of `old`."""
        empty = self._network.embedding.new_empty(self._weights.num_groups, 0, self._weights.head_size)
        keys, values = (old.keys, old.values) if old else ([empty] * len(self._network.layers),) * 2
        keys, values = ([reserve(buffer, filled, needed) for buffer in kept] for kept in (keys, values))
        positions = torch.arange(keys[0].shape[1])
        cosines, sines = (table[:, 0] for table in self._weights.angles(positions))
        return Buffers(keys, values, cosines, sines, positions)

    def _make_all(self, backend: str) -> None:
        text = torch.arange(_SAMPLE + NARROW) % len(self._network.embedding)
        buffers = self.buffers(len(text))
        self.run(text[:_SAMPLE], 0, buffers, 1)
        for tensor in (*buffers.keys, *buffers.values):
            torch._dynamo.mark_dynamic(tensor, 1)  # they may grow
        for tensor in (buffers.cosines, buffers.sines):
            torch._dynamo.mark_dynamic(tensor, 0)
        for width in self.widths:
            compiled = torch.compile(  # type: ignore[call-overload]  # its annotations lag behind
                forward, fullgraph=True, backend=backend, options=_options(backend), isolate_recompiles=True
            )
            self._make(width, partial(compiled, self._compact, keep=width), text[_SAMPLE : _SAMPLE + width], buffers)

    def _make(self, width: int, compiled: Graph, token_ids: torch.Tensor, buffers: Buffers) -> None:
        """Call the graph once, which compiles it, and see that it computes what the model does."""
        positions = buffers.positions[: _SAMPLE + width]
        torch._dynamo.mark_dynamic(positions, 0)
        with torch._dynamo.config.patch(automatic_dynamic_shapes=False):  # the last graph's width is not this one's
            compiled(token_ids, positions, buffers)
        graph = GraphCall.behind(compiled, token_ids, positions, buffers) or compiled
        found, expected = graph(token_ids, positions, buffers)[0], self.run(token_ids, _SAMPLE, buffers, width)[0]
        found, expected = (rows[:, : self._num_proposed] for rows in (found, expected))
        error = float((found - expected).abs().max() / expected.abs().max())
        if not error < _TOLERANCE.get(expected.dtype, 0.1):
            raise NotCompilableError(f"its compiled logits over {width} tokens are off by {error:.0e} of the largest")
        self._graphs[width] = graph


def _options(backend: str) -> dict[str, Any]:
    """For one graph: torch takes the guards' entry out of the dictionary. Each graph has one caller, who feeds it one
    shape: nothing to guard."""
    guards = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    inductor = {"cpp.enable_floating_point_contract_flag": "fast", "size_asserts": False}
    return {**guards, **(inductor if backend == "inductor" else {})}


_compiled: WeakKeyDictionary[PreTrainedModel, Graphs] = WeakKeyDictionary()


def warm_up(target: PreTrainedModel, draft: PreTrainedModel, backend: str = "inductor") -> float:
    """Compile the models that can be and are not yet; every cache made from then on runs their graphs. The log says
    which model runs as before, and why. Returns the seconds it took."""
    began = time.perf_counter()
    for model, widths in ((target, WIDTHS), (draft, DRAFT_WIDTHS)):
        name = model.name_or_path or type(model).__name__
        if model in _compiled:
            continue
        try:
            _compiled[model] = Graphs(model, widths, backend)
        except NotCompilableError as error:
            _log.warning("%s is not compiled and runs as it is: %s", name, error)
        else:
            _log.info("%s compiled in %.1f s", name, _compiled[model].seconds)
    return time.perf_counter() - began


def graphs_of(model: PreTrainedModel) -> Graphs | None:
    """What :func:`warm_up` has made of this model."""
    return _compiled.get(model)


def _check(model: PreTrainedModel) -> None:
    if not llama.fits(model):
        raise NotCompilableError(f"{model.config.model_type} is not of Llama's shape, or was altered")
    if model.device.type != "cpu":
        raise NotCompilableError(f"it is on {model.device}, and the compiled path is for the CPU")
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        raise NotCompilableError(f"that takes torch 2.13, and this is {torch.__version__}")
