"""The target over many texts at once.

Llama layers over fixed buffers, because transformers' cached decoding spends more on bookkeeping than these matrices
cost. Prompts of a wave end in the same column (padding on the left), so that one step writes one column.
Letters: B texts, T columns, V vocabulary, H query heads, G key heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

#: Texts whose prompts are read together.
_PROMPTS = 256
#: Steps between two looks at which texts have ended.
_LOOK_EVERY = 8


@dataclass
class _Layer:
    norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [(H + 2 G) D, hidden]
    out: torch.Tensor  # [hidden, H D]
    mlp_norm: torch.Tensor  # [hidden]
    gate_up: torch.Tensor  # [2 inner, hidden]
    down: torch.Tensor  # [hidden, inner]


class Teacher:
    """Owns the keys and values of one wave of texts, on the model's device and in its precision."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        config: Any = model.config  # its fields are annotated as optional
        self.heads: int = config.num_attention_heads
        self.key_heads: int = config.num_key_value_heads
        self.head_size: int = config.head_dim
        self.eps = config.rms_norm_eps
        self.embedding = model.model.embed_tokens.weight.detach()
        self.head = model.lm_head.weight.detach()
        self.norm = model.model.norm.weight.detach()
        self.layers = [
            _Layer(
                layer.input_layernorm.weight.detach(),
                torch.cat([getattr(layer.self_attn, f"{name}_proj").weight.detach() for name in "qkv"]),
                layer.self_attn.o_proj.weight.detach(),
                layer.post_attention_layernorm.weight.detach(),
                torch.cat([layer.mlp.gate_proj.weight.detach(), layer.mlp.up_proj.weight.detach()]),
                layer.mlp.down_proj.weight.detach(),
            )
            for layer in model.model.layers
        ]
        theta = config.rope_parameters["rope_theta"]
        halves = torch.arange(0, self.head_size, 2, device=self.device).float() / self.head_size
        self.frequencies = theta**-halves  # [D / 2]

    @property
    def device(self) -> torch.device:
        return self.head.device

    def begin(self, prompts: Sequence[Sequence[int]], columns: int, padding_id: int) -> torch.Tensor:
        """Read a wave of prompts, with room for `columns` tokens after the longest; logits [B, V] after their ends."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[padding_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        self.padding = torch.tensor([longest - len(prompt) for prompt in prompts]).to(self.device)
        self.length = 0
        shape = (len(self.layers), len(prompts), self.key_heads, longest + columns, self.head_size)
        self.keys, self.values = (torch.empty(shape, dtype=self.head.dtype, device=self.device) for _ in range(2))
        logits = [
            self._read(ids[first : first + _PROMPTS].to(self.device), slice(first, first + _PROMPTS))
            for first in range(0, len(ids), _PROMPTS)
        ]
        self.length = longest
        return torch.cat(logits)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows [B'] of the wave alone."""
        self.padding = self.padding[rows]
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Append one token `ids` [B] to each text; logits [B, V] after it."""
        logits = self._read(ids[:, None], slice(None))
        self.length += 1
        return logits

    def _read(self, ids: torch.Tensor, rows: slice) -> torch.Tensor:
        """Write the columns of `ids` [B, T] for some rows of the wave; logits [B, V] after the last."""
        end = self.length + ids.shape[1]
        columns, seen = (torch.arange(start, end, device=self.device) for start in (self.length, 0))
        padding = self.padding[rows, None]
        angles = (columns - padding).clamp_min(0)[..., None] * self.frequencies  # [B, T, D / 2]
        angles = torch.cat([angles, angles], dim=-1)[:, None]  # [B, 1, T, D]
        cos, sin = angles.cos().to(self.head.dtype), angles.sin().to(self.head.dtype)
        mask = (seen <= columns[:, None]) & (seen >= padding[..., None])  # [B, T, end]
        mask = (mask | (seen == columns[:, None]))[:, None]  # padding sees itself: no empty row
        hidden = self.embedding[ids]
        for number, layer in enumerate(self.layers):
            hidden = hidden + self._attend(number, layer, hidden, cos, sin, mask, rows)
            gate, up = functional.linear(self._normed(hidden, layer.mlp_norm), layer.gate_up).chunk(2, -1)
            hidden = hidden + functional.linear(functional.silu(gate) * up, layer.down)
        return functional.linear(self._normed(hidden[:, -1], self.norm), self.head)

    def _attend(
        self,
        number: int,
        layer: _Layer,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor,
        rows: slice,
    ) -> torch.Tensor:
        batch, length = hidden.shape[:2]
        qkv = functional.linear(self._normed(hidden, layer.norm), layer.qkv).view(batch, length, -1, self.head_size)
        query, key, value = qkv.transpose(1, 2).split([self.heads, self.key_heads, self.key_heads], dim=1)
        columns = slice(self.length, self.length + length)
        self.keys[number, rows, :, columns] = _rotated(key, cos, sin)
        self.values[number, rows, :, columns] = value
        keys, values = (cache[number, rows, :, : columns.stop] for cache in (self.keys, self.values))
        query = _rotated(query, cos, sin)
        group = self.heads // self.key_heads
        if length == 1:  # the heads of a group as if they were places that see the same
            query = query.reshape(batch, self.key_heads, group, self.head_size)
            mask = mask.expand(-1, -1, group, -1)
        else:
            keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        seen = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        seen = seen.reshape(batch, self.heads, length, self.head_size)
        return functional.linear(seen.transpose(1, 2).flatten(2), layer.out)

    def _normed(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self.eps)


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding (Su et al. 2104.09864), in Llama's half-split form. [B, heads, T, D]"""
    left, right = states.chunk(2, -1)
    return states * cos + torch.cat([-right, left], -1) * sin


@torch.inference_mode()
def answer(
    teacher: Teacher,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    end_token_id: int,
    seed: int,
) -> list[list[int]]:
    """Continue all prompts until `end_token_id`, which is part of the answer, or `max_new_tokens`; greedily at
    temperature 0."""
    generator = torch.Generator(teacher.device).manual_seed(seed)
    said = torch.full((len(prompts), max_new_tokens), end_token_id, device=teacher.device)
    going = torch.arange(len(prompts), device=teacher.device)
    logits = teacher.begin(prompts, max_new_tokens, end_token_id)
    for step in range(max_new_tokens):
        if temperature:
            drawn = torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator)[:, 0]
        else:
            drawn = logits.argmax(-1)
        said[going, step] = drawn
        if step % _LOOK_EVERY == _LOOK_EVERY - 1:
            rows = (said[going, : step + 1] != end_token_id).all(-1).nonzero()[:, 0]
            if len(rows) == 0:
                break
            if len(rows) <= 0.9 * len(going):
                teacher.keep(rows)
                going, drawn = going[rows], drawn[rows]
        if step + 1 < max_new_tokens:
            logits = teacher.read(drawn)
    return [row[: row.index(end_token_id) + 1] if end_token_id in row else row for row in said.tolist()]
