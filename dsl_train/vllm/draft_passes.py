"""The draft model over whatever each request has for it to read, and which of vLLM's cache blocks it has filled.

vLLM's own drafter reads in every step what the target has read. Here the draft reads when a token is wanted: a request
for which nothing is drafted costs nothing, and is caught up with later. So a block of the cache may hold the target's
keys and values without the draft's. Prefix caching shares such blocks between requests; what the draft has filled is
kept by block.

Letters: N requests, T tokens that they have to read together, H hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from dsl_train.vllm.request import RequestText


class Reader(NamedTuple):
    request: RequestText
    row: int
    """Of the batch's block table."""


class DraftPasses:
    """Runs the draft model that a proposer of vLLM has loaded."""

    def __init__(self, proposer: Any) -> None:
        self._proposer = proposer
        self._filled: set[int] = set()  # blocks that hold the draft's keys and values from end to end
        self._head_tokens: int | None = getattr(proposer.draft_model_config.hf_text_config, "draft_head_tokens", None)
        self.num_passes = 0

    def last_hidden(self, readers: Sequence[Reader], keeps: Sequence[int], block_table: torch.Tensor) -> torch.Tensor:
        """Read all that is unread; hidden states of the last `keeps` tokens of each request, [sum(keeps), H].

        `block_table` [B, blocks] is the batch's. What does not fit into one pass is read before.
        """
        most = self._proposer.max_num_tokens
        kept: list[torch.Tensor] = []
        group: list[tuple[Reader, list[int], int]] = []
        room = most
        for reader, keep in zip(readers, keeps, strict=True):
            unread = reader.request.unread
            while len(unread) > most:
                ahead = min(most, len(unread) - keep)
                self._read([(reader, unread[:ahead], 0)], block_table)
                unread = unread[ahead:]
            if len(unread) > room:
                kept.append(self._read(group, block_table))
                group, room = [], most
            group.append((reader, unread, keep))
            room -= len(unread)
        kept.append(self._read(group, block_table))
        return kept[0] if len(kept) == 1 else torch.cat(kept)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, V] of the tokens that the draft may propose: all, or the first ones that its config names."""
        model = self._proposer.model
        if self._head_tokens is None:
            return model.compute_logits(hidden)
        processor = model.logits_processor
        if processor.scale != 1.0 or processor.soft_cap is not None:
            return model.compute_logits(hidden)[:, : self._head_tokens]
        return torch.nn.functional.linear(hidden, model.lm_head.weight[: self._head_tokens])

    def num_filled(self, reader: Reader, num_computed: int, block_table: torch.Tensor) -> int:
        """Of the `num_computed` tokens that a request was given from the cache, how many at the front the draft has
        read."""
        size = self._proposer.block_size
        block_ids = block_table[reader.row, : num_computed // size].tolist()
        return next((i for i, block_id in enumerate(block_ids) if block_id not in self._filled), len(block_ids)) * size

    def target_wrote(self, reader: Reader, begin: int, end: int, block_table: torch.Tensor) -> None:
        """The target has computed the tokens from `begin` to `end`: blocks that begin there are new."""
        size = self._proposer.block_size
        first, last = -(-begin // size), -(-end // size)
        if first < last:
            self._filled.difference_update(block_table[reader.row, first:last].tolist())

    def draft_wrote(self, reader: Reader, begin: int, end: int, block_table: torch.Tensor) -> None:
        """Of committed text, the draft's cache now holds the tokens up to `end` instead of up to `begin`."""
        size = self._proposer.block_size
        first, last = begin // size, end // size
        if first < last:
            self._filled.update(block_table[reader.row, first:last].tolist())

    def _read(self, group: Sequence[tuple[Reader, list[int], int]], block_table: torch.Tensor) -> torch.Tensor:
        """One pass over some tokens of each request; [sum of keeps, H]."""
        token_ids = [token_id for _, unread, _ in group for token_id in unread]  # [T]
        begins = np.array([reader.request.num_read for reader, _, _ in group])  # [N]
        lengths = np.array([len(unread) for _, unread, _ in group])  # [N]
        ends = begins + lengths
        starts = np.concatenate([[0], np.cumsum(lengths)])  # [N + 1] of the requests among the T tokens
        positions = np.arange(len(token_ids)) + np.repeat(begins - starts[:-1], lengths)  # [T]
        rows = [reader.row for reader, _, _ in group]
        hidden = self._forward(token_ids, positions, rows, starts, ends, block_table)  # [T, H]
        for (reader, _, _), end in zip(group, ends.tolist(), strict=True):
            reader.request.num_read = end
        if all(keep == len(unread) for _, unread, keep in group):
            return hidden
        kept = [np.arange(end - keep, end) for (_, _, keep), end in zip(group, starts[1:].tolist(), strict=True)]
        return hidden[torch.from_numpy(np.concatenate(kept)).to(hidden.device)]

    def _forward(
        self,
        token_ids: list[int],
        positions: np.ndarray,
        rows: list[int],
        starts: np.ndarray,
        ends: np.ndarray,
        block_table: torch.Tensor,
    ) -> torch.Tensor:
        proposer, device, num_tokens = self._proposer, block_table.device, len(token_ids)
        self.num_passes += 1
        proposer.input_ids[:num_tokens] = torch.tensor(token_ids, dtype=torch.int32)
        proposer.positions[:num_tokens] = torch.from_numpy(positions)
        table = block_table[torch.tensor(rows, device=device)]  # [N, blocks]
        owners = torch.from_numpy(np.repeat(np.arange(len(rows)), np.diff(starts))).to(device)  # [T]
        places, size = proposer.positions[:num_tokens], proposer.block_size
        slots = table[owners, places // size].long() * size + places % size  # [T]
        starts_on_host, ends_on_host = (torch.from_numpy(each.astype(np.int32)) for each in (starts, ends))
        metadata = CommonAttentionMetadata(
            query_start_loc=starts_on_host.to(device),
            query_start_loc_cpu=starts_on_host,
            seq_lens=ends_on_host.to(device),
            seq_lens_cpu_upper_bound=ends_on_host,
            num_reqs=len(rows),
            num_actual_tokens=num_tokens,
            max_query_len=int(np.diff(starts).max()),
            max_seq_len=int(ends.max()),
            block_table_tensor=table,
            slot_mapping=slots,
            causal=True,
        )
        _, of_layers = proposer.build_per_group_and_layer_attn_metadata(metadata)
        graph_mode, num_padded, across_ranks = proposer._determine_batch_execution_and_padding(num_tokens)
        with set_forward_context(
            of_layers,
            proposer.vllm_config,
            num_tokens=num_padded,
            num_tokens_across_dp=across_ranks,
            cudagraph_runtime_mode=graph_mode,
            slot_mapping=proposer._get_slot_mapping(num_padded, slots),
        ):
            hidden = proposer.model(
                input_ids=proposer.input_ids[:num_padded],
                positions=proposer.positions[:num_padded],
                inputs_embeds=None,
            )
        return hidden[:num_tokens]
