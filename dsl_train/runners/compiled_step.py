"""The forward that is compiled: Llama's layers over buffers that stay where they are.

Up to NARROW rows its matrices and its attention are written out for fusion, and each weight is read once for all rows;
above, they call the library's kernels. A narrow forward waits for its weights: where bfloat16 holds them exactly, as it
does those of most published models, they are read in bfloat16 and multiplied in float32, the same numbers for half the
traffic. Letters: T tokens fed, L tokens so far, H query heads on G key heads, D head size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch.nn import functional

from dsl_train.runners.llama import Head, Layer, Linear, LlamaLayers, layer_forward, normalise

NARROW = 17  # beyond, the library's products of matrices are faster


class FusedLinear(NamedTuple):
    weight: torch.Tensor  # [out, in]
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:  # [T, in] -> [T, out]
        if len(x) > NARROW:
            return functional.linear(x, self.weight, self.bias)
        # Without as_strided the compiler would work out x anew for each row of the weight
        rows, weight = x.as_strided(x.shape, x.stride()).float(), self.weight.float()
        product = torch.stack([(weight * row).sum(-1) for row in rows]).to(x.dtype)
        return product if self.bias is None else product + self.bias


class Network(NamedTuple):
    embedding: torch.Tensor
    layers: list[Layer]
    norm: torch.Tensor
    head: Head
    eps: float

    @classmethod
    def of(cls, own: LlamaLayers, compact: bool = False) -> "Network":
        """A model's own weights. With `compact` each matrix in half the memory if that holds it exactly, for narrow
        forwards."""

        def detached(part: Any) -> Any:
            if not isinstance(part, Linear):
                return None if part is None else part.detach()
            weight = part.weight.detach()
            small = weight.to(torch.bfloat16) if compact else weight
            exact = torch.equal(small.to(weight.dtype), weight)
            return FusedLinear(small if exact else weight, detached(part.bias))

        layers = [Layer(*map(detached, layer)) for layer in own.layers]
        head = Head(detached(own.head.rows), own.head.vocab_size)
        return cls(own.embedding.detach(), layers, own.norm.detach(), head, own.eps)


class Buffers(NamedTuple):
    """What a text has left behind, and the angles of its positions."""

    keys: list[torch.Tensor]  # one a layer, [G, capacity, D]
    values: list[torch.Tensor]
    cosines: torch.Tensor  # [capacity, D]
    sines: torch.Tensor  # the first half of D carries the minus
    positions: torch.Tensor  # [capacity] 0, 1, ...


def forward(
    network: Network, token_ids: torch.Tensor, positions: torch.Tensor, buffers: Buffers, keep: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Feed `token_ids` [T] at the last T of `positions` [L]; logits after the last `keep` of them, [keep, V], and what
    greedy decoding wants to know of them, [keep, 3]."""
    fed = positions[len(positions) - len(token_ids) :]
    angles = buffers.cosines[fed][:, None], buffers.sines[fed][:, None]  # [T, 1, D] each
    mask = torch.where(positions <= fed[:, None], 0.0, -torch.inf).to(network.embedding.dtype)  # [T, L]
    x = functional.embedding(token_ids, network.embedding)  # [T, hidden]
    for layer, keys, values in zip(network.layers, buffers.keys, buffers.values, strict=True):
        x = _layer(x, layer, keys, values, fed, mask, *angles, network.eps)
    logits = network.head(normalise(x[len(x) - keep :], network.norm, network.eps))
    return logits, _read(logits.float())


def _read(logits: torch.Tensor) -> torch.Tensor:  # [T, V] float32 -> [T, 3]
    """The most likely token, its log-probability and that of the next, as `features.read_draft` has them."""
    largest, ids = logits.max(-1, keepdim=True)
    is_first = torch.arange(logits.shape[-1], device=logits.device) == ids
    others = logits.masked_fill(is_first, -torch.inf) - largest
    log_total = others.exp().sum(-1, keepdim=True).log1p()
    return torch.cat([ids.float(), -log_total, others.amax(-1, keepdim=True) - log_total], -1)


@torch.compiler.nested_compile_region  # compiled once, not once a layer
def _layer(
    x: torch.Tensor,  # [T, hidden]
    layer: Layer,
    keys: torch.Tensor,  # [G, capacity, D]
    values: torch.Tensor,
    fed: torch.Tensor,  # [T] positions
    mask: torch.Tensor,  # [T, L]
    cosines: torch.Tensor,  # [T, 1, D]
    sines: torch.Tensor,
    eps: float,
) -> torch.Tensor:  # [T, hidden]
    def attend(queries: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
        for stored, new in zip((keys, values), fresh.chunk(2, 1), strict=True):
            stored.index_copy_(1, fed, new.transpose(0, 1))
        past = slice(mask.shape[1])
        return _attend(queries, keys[:, past], values[:, past], mask)

    return layer_forward(x, layer, cosines, sines, keys.shape[0], eps, attend)


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    # [T, H, D], [G, L, D] twice, [T, L] -> [T, H * D]
    num_fed, heads, size = queries.shape
    groups, length = keys.shape[0], keys.shape[1]
    shared = heads // groups  # query heads on a key head: so many more rows
    if num_fed > NARROW:
        attended = functional.scaled_dot_product_attention(
            queries.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, enable_gqa=shared > 1
        )  # [1, H, T, D]
        return attended[0].transpose(0, 1).reshape(num_fed, -1)
    rows = queries.reshape(num_fed, groups, shared, size).permute(1, 2, 0, 3).reshape(groups, -1, size)
    scores = (rows @ keys.transpose(1, 2)).view(groups, shared, num_fed, length)
    weights = torch.softmax(scores.float() * size**-0.5 + mask, -1).to(values.dtype)
    attended = (weights.view(groups, -1, length) @ values).view(groups, shared, num_fed, size)
    return attended.permute(2, 0, 1, 3).reshape(num_fed, -1)
