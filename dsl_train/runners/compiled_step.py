"""The forward that is compiled: Llama's layers over buffers that stay where they are, written for torch.compile.

Up to NARROW rows it is written out for fusion, and each weight is read once for all rows; above, it calls the library's
kernels. A narrow forward waits for its weights: where bfloat16 holds them exactly, as it does those of most published
models, they are read in bfloat16 and multiplied in float32, the same numbers for half the traffic. Letters: T tokens
fed, L tokens so far, H query heads on G key heads, D head size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch.nn import functional

from dsl_train.runners.llama import DirectDecoder

NARROW = 17  # beyond, the library's products of matrices are faster


class Linear(NamedTuple):
    weight: torch.Tensor  # [out, in]
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:  # [T, in] -> [T, out]
        if len(x) > NARROW:
            return functional.linear(x, self.weight, self.bias)
        # Without as_strided the compiler would work out x anew for each row of the weight
        rows, weight = x.as_strided(x.shape, x.stride()).float(), self.weight.float()
        product = torch.stack([(weight * row).sum(-1) for row in rows]).to(x.dtype)
        return product if self.bias is None else product + self.bias


class Layer(NamedTuple):
    attention_norm: torch.Tensor
    query_key_value: Linear
    query_norm: torch.Tensor | None  # [D]; Qwen3
    key_norm: torch.Tensor | None
    output: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class Network(NamedTuple):
    embedding: torch.Tensor
    layers: list[Layer]
    norm: torch.Tensor
    head: Linear
    eps: float


class Weights(DirectDecoder):
    """A model's own weights, as the forward wants them."""

    def network(self, compact: bool = False) -> Network:
        """With `compact` each matrix in half the memory if that holds it exactly, for narrow forwards."""

        def matrix(module: Any) -> Linear:
            weight, bias = module.weight.detach(), _detached(module.bias)
            small = weight.to(torch.bfloat16) if compact else weight
            return Linear(small if torch.equal(small.to(weight.dtype), weight) else weight, bias)

        layers = [
            Layer(
                attention_norm=layer.attention_norm.detach(),
                query_key_value=matrix(joined.query_key_value),
                query_norm=_detached(layer.query_norm),
                key_norm=_detached(layer.key_norm),
                output=matrix(layer.output),
                mlp_norm=layer.mlp_norm.detach(),
                gate_up=matrix(joined.gate_up),
                down=matrix(layer.down),
            )
            for layer, joined in zip(self.layers, self._joined, strict=True)
        ]
        return Network(self.embedding.detach(), layers, self.norm.detach(), matrix(self.head.rows), self.eps)

    def angles(self, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines by position, [capacity, D] each; the first half of D has its sines' sign turned."""
        cosines, sines = (table[0] for table in self._rope(self.embedding, torch.arange(capacity)[None]))
        sines[:, : self.head_size // 2].neg_()
        return cosines, sines


def _detached(weight: torch.Tensor | None) -> torch.Tensor | None:
    return None if weight is None else weight.detach()


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
        x = layer_forward(x, layer, keys, values, fed, mask, *angles, network.eps)
    logits = network.head(_normalise(x[len(x) - keep :], network.norm, network.eps))
    return logits, _read(logits.float())


def _read(logits: torch.Tensor) -> torch.Tensor:  # [T, V] float32 -> [T, 3]
    """The most likely token, its log-probability and that of the next, as `features.read_draft` has them."""
    largest, ids = logits.max(-1, keepdim=True)
    is_first = torch.arange(logits.shape[-1], device=logits.device) == ids
    others = logits.masked_fill(is_first, -torch.inf) - largest
    log_total = others.exp().sum(-1, keepdim=True).log1p()
    return torch.cat([ids.float(), -log_total, others.amax(-1, keepdim=True) - log_total], -1)


@torch.compiler.nested_compile_region  # compiled once, not once a layer
def layer_forward(
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
    groups, size = keys.shape[0], keys.shape[2]
    heads = layer.query_key_value(_normalise(x, layer.attention_norm, eps)).view(len(x), -1, size)  # [T, H + 2G, D]
    queries, fresh_keys, fresh_values = heads.split([heads.shape[1] - 2 * groups, groups, groups], 1)
    if layer.query_norm is not None and layer.key_norm is not None:
        queries, fresh_keys = _normalise(queries, layer.query_norm, eps), _normalise(fresh_keys, layer.key_norm, eps)
    keys.index_copy_(1, fed, _rotate(fresh_keys, cosines, sines).transpose(0, 1))
    values.index_copy_(1, fed, fresh_values.transpose(0, 1))
    past = slice(mask.shape[1])
    x = x + layer.output(_attend(_rotate(queries, cosines, sines), keys[:, past], values[:, past], mask))
    gate, up = layer.gate_up(_normalise(x, layer.mlp_norm, eps)).chunk(2, -1)
    return x + layer.down(functional.silu(gate) * up)


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


def _normalise(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return functional.rms_norm(x, weight.shape, weight, eps)


def _rotate(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:  # [T, heads, D]
    """Turn each pair (x[d], x[d + D/2]) by its angle."""
    return heads * cosines + heads.roll(heads.shape[-1] // 2, -1) * sines
