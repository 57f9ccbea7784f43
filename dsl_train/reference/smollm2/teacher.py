"""The target over many texts at once: answers and, for free, what it thought of every token.

Llama layers over fixed buffers, because transformers' cached decoding spends more on bookkeeping than these matrices
cost. Prompts of a wave end in the same column (padding on the left), so that one step writes one column.
Letters: B texts, T columns, V vocabulary, H query heads, G key heads, D head size, K labels a place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM


@dataclass
class _Layer:
    norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [(H + 2 G) D, hidden]
    out: torch.Tensor  # [hidden, H D]
    mlp_norm: torch.Tensor  # [hidden]
    gate_up: torch.Tensor  # [2 inner, hidden]
    down: torch.Tensor  # [hidden, inner]


class Teacher:
    """Owns the keys and values of one wave of texts; :meth:`read` appends columns."""

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
        self.frequencies = theta ** -(torch.arange(0, self.head_size, 2).float() / self.head_size)  # [D / 2]

    def begin(self, padding: torch.Tensor, columns: int) -> None:
        """A wave whose rows have `padding` [B] empty columns on the left; room for `columns` in all."""
        self.padding, self.length = padding, 0
        shape = (len(self.layers), len(padding), self.key_heads, columns, self.head_size)
        self.keys, self.values = torch.empty(shape), torch.empty(shape)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows [B'] of the wave alone."""
        self.padding = self.padding[rows]
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Append `ids` [B, T]; logits [B, V] after the last column."""
        start, end = self.length, self.length + ids.shape[1]
        columns = torch.arange(start, end)
        places = (columns - self.padding[:, None]).clamp_min(0)  # [B, T]
        angles = places[..., None] * self.frequencies  # [B, T, D / 2]
        angles = torch.cat([angles, angles], dim=-1)[:, None]  # [B, 1, T, D]
        cos, sin = angles.cos(), angles.sin()
        seen = torch.arange(end)[None, None] <= columns[None, :, None]  # [1, T, end]
        mask = (seen & (torch.arange(end) >= self.padding[:, None, None]))[:, None]  # [B, 1, T, end]
        mask = mask | (torch.arange(end) == columns[:, None])  # padding sees itself: no empty row
        hidden = self.embedding[ids]
        for number, layer in enumerate(self.layers):
            hidden = hidden + self._attend(number, layer, hidden, cos, sin, mask)
            gate, up = functional.linear(self._normed(hidden, layer.mlp_norm), layer.gate_up).chunk(2, -1)
            hidden = hidden + functional.linear(functional.silu(gate) * up, layer.down)
        self.length = end
        return functional.linear(self._normed(hidden[:, -1], self.norm), self.head)

    def _attend(
        self,
        number: int,
        layer: _Layer,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        batch, length = hidden.shape[:2]
        qkv = functional.linear(self._normed(hidden, layer.norm), layer.qkv).view(batch, length, -1, self.head_size)
        query, key, value = qkv.transpose(1, 2).split([self.heads, self.key_heads, self.key_heads], dim=1)
        columns = slice(self.length, self.length + length)
        self.keys[number, :, :, columns] = _rotated(key, cos, sin)
        self.values[number, :, :, columns] = value
        keys, values = (cache[number, :, :, : columns.stop] for cache in (self.keys, self.values))
        seen = functional.scaled_dot_product_attention(
            _rotated(query, cos, sin), keys, values, attn_mask=mask, enable_gqa=True
        )
        return functional.linear(seen.transpose(1, 2).flatten(2), layer.out)

    def _normed(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self.eps)


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding (Su et al. 2104.09864), in Llama's half-split form. [B, heads, T, D]"""
    left, right = states.chunk(2, -1)
    return states * cos + torch.cat([-right, left], -1) * sin


@dataclass
class Answers:
    """One wave of answers with the target's most likely tokens at every place."""

    token_ids: list[list[int]]  # B of up to T
    top_ids: list[torch.Tensor]  # B of [T, K] int64
    top_log_probs: list[torch.Tensor]  # B of [T, K] float32


@torch.inference_mode()
def answer(
    teacher: Teacher,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    end_token_id: int,
    num_labels: int,
    generator: torch.Generator,
) -> Answers:
    """Continue all prompts until `end_token_id` or `max_new_tokens`, greedily at temperature 0."""
    longest = max(map(len, prompts))
    padding = torch.tensor([longest - len(prompt) for prompt in prompts])
    teacher.begin(padding, longest + max_new_tokens)
    ids = torch.tensor([[end_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    found = Answers([[] for _ in prompts], [], [])
    tops: list[tuple[list[int], torch.Tensor, torch.Tensor]] = []
    alive = list(range(len(prompts)))
    for step in range(max_new_tokens):
        logits = teacher.read(ids)  # [B', V]
        top = logits.topk(num_labels)  # [B', K]
        tops.append((list(alive), top.indices, top.values - logits.logsumexp(-1, keepdim=True)))
        if temperature:
            drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
        else:
            drawn = top.indices[:, 0]
        for row, token_id in zip(alive, drawn.tolist(), strict=True):
            found.token_ids[row].append(token_id)
        ids = drawn[:, None]
        going = (drawn != end_token_id).nonzero()[:, 0]
        if len(going) == 0 or step + 1 == max_new_tokens:
            break
        if len(going) <= 0.9 * len(alive) or len(alive) <= 8:
            teacher.keep(going)
            alive, ids = [alive[i] for i in going.tolist()], ids[going]
    return _collected(found, tops)


def _collected(found: Answers, tops: list[tuple[list[int], torch.Tensor, torch.Tensor]]) -> Answers:
    """Labels by text; what was drawn after an end is dropped."""
    ends = [row.index(2) + 1 if 2 in row else len(row) for row in found.token_ids]
    for row, end in enumerate(ends):
        places = [(ids[alive.index(row)], probs[alive.index(row)]) for alive, ids, probs in tops[:end]]
        found.top_ids.append(torch.stack([ids for ids, _ in places]))
        found.top_log_probs.append(torch.stack([probs for _, probs in places]))
        del found.token_ids[row][end:]
    return found
