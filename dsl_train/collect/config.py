"""What `dsl-collect` can be told. Field docstrings are its help."""

from dataclasses import dataclass
from typing import Literal

from dsl_train.sampling import Sampling


@dataclass(frozen=True)
class CollectConfig:
    """Record what the draft says and what the target accepts, for dsl-train. The same command again resumes."""

    target: str
    """Folder or Hub id of the target model."""
    draft: str
    """Folder or Hub id of the draft model."""
    prompts: str
    """JSONL, JSON, Parquet, CSV or text file, a Hub dataset, or '-' for standard input."""
    output: str
    """Trace folder to write."""
    column: str | None = None
    """Column of the prompts, if it is not named prompt, text, question, turns, messages or conversations."""
    split: str = "train"
    """Split of a Hub dataset."""
    num_prompts: int | None = None
    """Use only the first so many different prompts."""
    method: Literal["hindsight", "oracle"] = "hindsight"
    """hindsight: the target's responses, generated in batches, through both models once; the same law, faster. oracle:
    speculative decoding itself, each block drafted to the first mismatch and a tail beyond."""
    batch_size: int = 16
    """Texts generated and read together by hindsight. Changes the speed, not what is recorded (in float32)."""
    max_new_tokens: int = 128
    """Response length at most."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 is off."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability; 1 is off."""
    max_lookahead: int = 8
    """Tokens drafted before a verification, at most. Changes the speed, not what is recorded."""
    tail_length: int = 8
    """Draft steps recorded after a rejected token."""
    part_size: int = 16
    """Prompts per part: what a kill can cost."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of both models; auto is float32 on the CPU and bfloat16 elsewhere."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is CUDA if there is one."""
    seed: int = 0
    """Randomness of sampling; each prompt has a generator of its own."""
    num_threads: int | None = None
    """CPU threads of torch; its own choice if not given."""

    def __post_init__(self) -> None:
        _ = self.sampling
        for name in ("max_new_tokens", "max_lookahead", "part_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.tail_length < 0:
            raise ValueError(f"tail_length must be 0 or positive, not {self.tail_length}")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)
