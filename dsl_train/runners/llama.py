"""Decoders of Llama's shape, run straight from their weights: transformers' arithmetic without its Python.

In a small model most of a forward is not arithmetic but the way there: modules, wrappers, masks, output objects, a
cache per layer (docs/performance.md). This is the same network as one function over the same parameters. Matrices that
read the same input become one: the model's own parameters are laid side by side in memory, so that joining keeps
nothing twice. A change of the weights in place is seen by the next text (`linear.py`). Models that are not exactly of
this shape are left to transformers.
One text (`DirectDecoder`), several (`packed.py`) and compiled graphs (`compiled_step.py`) share its layers.
Letters: N layers, T tokens fed, L tokens so far, H query heads on G key heads, D head size, V vocabulary.
"""

from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.activations import SiLUActivation

from dsl_train.runners.kv_cache import keeps_every_token, reserve
from dsl_train.runners.linear import Linear, worth_packing
from dsl_train.runners.narrow_head import head_tokens

_FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_PLAIN_MODULES = (nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU, SiLUActivation)
#: First of the parameters that read one input -> all their rows, in the memory that they share.
_joined: MutableMapping[torch.Tensor, torch.Tensor] = WeakTensorKeyDictionary()
_STATIC_ROPES = ("default", "linear", "llama3", "yarn")  # angles that depend on the position alone

Attention = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]
"""Layer number, queries [T, H, D], keys and values [T, 2G, D], the keys first -> [T, H * D]."""


class Head(NamedTuple):
    rows: Linear
    """Of the tokens that the model may propose."""
    vocab_size: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Head":
        return cls(Linear.of(model.lm_head, head_tokens(model)), len(model.lm_head.weight))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:  # [T, hidden] -> [T, V]
        logits = self.rows(x)
        missing = self.vocab_size - logits.shape[-1]
        return functional.pad(logits, (0, missing), value=-torch.inf) if missing else logits


class Layer(NamedTuple):
    attention_norm: torch.Tensor
    query_key_value: Linear
    query_norm: torch.Tensor | None  # [D]; Qwen3
    key_norm: torch.Tensor | None
    output: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


def layer_forward(
    x: torch.Tensor,  # [T, hidden]
    layer: Layer,
    cosines: torch.Tensor,  # [T, 1, D]
    sines: torch.Tensor,  # the first half of D has its sign turned
    num_groups: int,
    eps: float | torch.Tensor,
    attend: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:  # [T, hidden]
    """One layer; attention, and what it remembers, is the caller's (`Attention`, the number of the layer known)."""
    fed = layer.query_key_value(normalise(x, layer.attention_norm, eps))
    heads = fed.view(len(x), -1, cosines.shape[-1])  # [T, H + 2G, D]
    queries, keys_values, turned = heads[:, : -2 * num_groups], heads[:, -2 * num_groups :], heads[:, :-num_groups]
    if layer.query_norm is not None and layer.key_norm is not None:
        queries.copy_(normalise(queries, layer.query_norm, eps))
        keys = keys_values[:, :num_groups]
        keys.copy_(normalise(keys, layer.key_norm, eps))
    # Each pair (x[d], x[d + D/2]) by its angle
    other = turned.roll(cosines.shape[-1] // 2, -1)
    turned.mul_(cosines).addcmul_(other, sines)
    x = layer.output(attend(queries, keys_values)).add_(x)
    gate, up = layer.gate_up(normalise(x, layer.mlp_norm, eps)).chunk(2, -1)
    return layer.down(functional.silu(gate).mul_(up)).add_(x)


def normalise(x: torch.Tensor, weight: torch.Tensor, eps: float | torch.Tensor) -> torch.Tensor:
    """By the root mean square. With `eps` as a tensor [1], in float32, by four kernels instead of the CPU's six."""
    if isinstance(eps, float):
        return functional.rms_norm(x, weight.shape, weight, eps)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * weight).mul_(torch.addcmul(eps, length, length, value=1 / x.shape[-1]).rsqrt_())


class LlamaLayers:
    """The network over a list of tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        config, body = model.config, model.model
        self.num_heads, self.num_groups = config.num_attention_heads, config.num_key_value_heads
        self.head_size: int = body.layers[0].self_attn.head_dim
        self.embedding, self.norm, self.head = body.embed_tokens.weight, body.norm.weight, Head.of(model)
        self.layers = [_layer(module) for module in body.layers]
        self.eps: float = config.rms_norm_eps
        lean = self.embedding.device.type == "cpu" and self.embedding.dtype is torch.float32
        self._eps = torch.full((1,), self.eps) if lean else self.eps
        self._rope = body.rotary_emb
        self._matrices = [part for layer in self.layers for part in layer if isinstance(part, Linear)]
        self._matrices.append(self.head.rows)
        self._packs = worth_packing(self._matrices)

    def begin(self) -> None:
        """Before a text's first tokens: see the weights as they are now."""
        if self._packs:
            for matrix in self._matrices:
                matrix.follow()

    def hidden(
        self, token_ids: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, attend: Attention
    ) -> torch.Tensor:  # [T], [T, 1, D] twice -> [T, hidden]
        """The last layer's output; the angles are those of the tokens' positions."""
        x = functional.embedding(token_ids, self.embedding)
        for i, layer in enumerate(self.layers):
            x = layer_forward(x, layer, cosines, sines, self.num_groups, self._eps, partial(attend, i))
        return x

    def logits_of(self, x: torch.Tensor) -> torch.Tensor:  # [T, hidden] -> [T, V]
        return self.head(normalise(x, self.norm, self._eps))

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [T] -> [T, 1, D] twice
        """Cosines and sines; the first half of D has the sines' sign turned."""
        cosines, sines = (table[0, :, None] for table in self._rope(self.embedding, positions[None]))
        sines[..., : self.head_size // 2].neg_()
        return cosines, sines

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:  # [T, H, D], [1, G, L, D] twice -> [T, H * D]
        """Of the last T tokens of one text; without a `mask` [T, L] there is one of them, or nothing before them."""
        num_fed = len(queries)
        if num_fed == 1:  # the heads of a group are so many queries on the same keys
            grouped = queries.view(1, self.num_groups, -1, self.head_size)
            return functional.scaled_dot_product_attention(grouped, keys, values).reshape(1, -1)
        attended = functional.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.num_groups < self.num_heads,
        )  # [1, H, T, D]
        return attended[0].transpose(0, 1).reshape(num_fed, -1)


class DirectDecoder(LlamaLayers):
    """Feeds tokens of one text and keeps their keys and values; going back is feeding from an earlier position."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        shape = (len(self.layers), 2, 1, self.num_groups, 0, self.head_size)
        self._cache = self.embedding.new_empty(shape)  # [N, 2, 1, G, capacity, D]; keys and values
        self._angles = self.embedding.new_empty((2, 0, 1, self.head_size))  # by position

    def logits(self, token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:
        """Feed `token_ids` [T] at text positions `start` ...; logits after the last `keep` of them, [keep, V]."""
        end = start + len(token_ids)
        if not start:
            self.begin()
        self._reserve(start, end)
        past = self._cache[..., :end, :].flatten(0, 1).unbind()  # 2N times [1, G, L, D]; keys, values, ...
        fresh = self._cache[..., start:end, :].flatten(1, 3).unbind()  # N times [2G, T, D]
        mask = _causal(start, end, self.embedding) if 0 < start < end - 1 else None

        def attend(i: int, queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
            fresh[i].copy_(keys_values.transpose(0, 1))
            return self.attend(queries, past[2 * i], past[2 * i + 1], mask)

        cosines, sines = self._angles[:, start:end].unbind()  # [T, 1, D] each
        return self.logits_of(self.hidden(token_ids, cosines, sines, attend)[-keep:])

    def truncate(self, num_removed: int) -> int:
        """Nothing to do: what is fed next overwrites."""
        return num_removed

    def reset(self) -> None:
        """Nothing to do either."""

    def _reserve(self, filled: int, needed: int) -> None:
        if needed > self._angles.shape[1]:
            self._cache = reserve(self._cache, filled, needed)
            positions = torch.arange(self._cache.shape[-2], device=self._cache.device)
            self._angles = torch.stack(self.angles(positions))


def fits(model: PreTrainedModel) -> bool:
    """Whether :class:`DirectDecoder` computes what `model` does: one of the families, unaltered, on one device."""
    if type(model) not in _FAMILIES or not keeps_every_token(model.config):
        return False
    config, family = model.config, type(model).__module__
    modules, tensors = list(model.modules()), list(model.parameters())
    return (
        config.hidden_act == "silu"
        and config.rope_parameters["rope_type"] in _STATIC_ROPES
        and config._attn_implementation in ("sdpa", "eager")
        and all(type(module) in _PLAIN_MODULES or type(module).__module__ == family for module in modules)
        and not any(_altered(module) for module in modules)
        and all(type(tensor.data) is torch.Tensor and tensor.is_floating_point() for tensor in tensors)
        and len({(tensor.device, tensor.dtype) for tensor in tensors}) == 1
    )


def _altered(module: nn.Module) -> bool:
    """Somebody listens to its calls, or has put another function in their place."""
    return bool("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


def _layer(module: Any) -> Layer:  # the families share these names, no type does
    attention, mlp = module.self_attn, module.mlp
    query_norm, key_norm = (getattr(getattr(attention, name, None), "weight", None) for name in ("q_norm", "k_norm"))
    return Layer(
        attention_norm=module.input_layernorm.weight,
        query_key_value=_join(attention.q_proj, attention.k_proj, attention.v_proj),
        query_norm=query_norm,
        key_norm=key_norm,
        output=Linear.of(attention.o_proj),
        mlp_norm=module.post_attention_layernorm.weight,
        gate_up=_join(mlp.gate_proj, mlp.up_proj),
        down=Linear.of(mlp.down_proj),
    )


def _join(*modules: nn.Linear) -> Linear:
    """One map to all their outputs. Their parameters move into its memory, unless an earlier decoder has done that."""
    weights = [module.weight for module in modules]
    biases = [module.bias for module in modules if module.bias is not None]
    return Linear.joined(_side_by_side(weights), _side_by_side(biases) if biases else None, *weights)


def _side_by_side(parts: Sequence[torch.Tensor]) -> torch.Tensor:  # [rows, ...] each -> [all rows, ...]
    """Each part gets a storage of its own over its rows: safetensors does not write parts of a larger one."""
    known = _joined.get(parts[0])
    sizes = [len(part) for part in parts]
    if known is not None and len(known) == sum(sizes) and _lie_in(parts, known.split(sizes)):
        return known
    with torch.inference_mode(parts[0].is_inference()):  # parameters stay trainable if they were
        joined = torch.cat([part.detach() for part in parts])
        owned = [torch.from_dlpack(rows) for rows in joined.split(sizes)]
    for part, rows in zip(parts, owned, strict=True):
        part.data = rows
    _joined[parts[0]] = joined
    return joined


def _lie_in(parts: Sequence[torch.Tensor], places: Sequence[torch.Tensor]) -> bool:
    return all(part.data_ptr() == place.data_ptr() for part, place in zip(parts, places, strict=True))


def _causal(start: int, end: int, like: torch.Tensor) -> torch.Tensor:
    """[T, L]: 0 where the token at `start` + row may look, minus infinity after it."""
    return torch.full((end - start, end), -torch.inf, dtype=like.dtype, device=like.device).triu_(start + 1)
