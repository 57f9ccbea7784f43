"""dsl-generate: continue prompts with a draft whose lookahead is learned."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsl_train.cli.app import run

if TYPE_CHECKING:
    from dsl_train.api.speculator import Generation


@dataclass
class GenerateConfig:
    """Continue prompts with exactly the target's own output, faster: a small draft proposes, the target verifies,
    and the predictor shipped beside the draft decides how far to draft. The prompt comes from --prompt, --prompts or
    standard input."""

    target: str
    """Folder or Hub id of the target model."""
    draft: str
    """Folder or Hub id of the draft model."""
    prompt: str | None = None
    """Text to continue, or for an encoder-decoder to answer; of one that reads audio, a WAV or .npy file."""
    prompts: str | None = None
    """File or Hub data set of prompts, in any format dsl-collect takes; each is continued in turn."""
    column: str | None = None
    """Column of --prompts that holds the text."""
    num_prompts: int | None = None
    """Continue only the first so many prompts."""
    predictor: Path | None = None
    """Folder of the predictor. Default: the draft's dsl folder."""
    policy: str = "learned"
    """Who decides the lookahead: learned, static:K, heuristic, confidence[:THRESHOLD,CAP], ...; static:0 drafts
    nothing."""
    adapt: bool = False
    """Correct the learned policy while generating, by what was accepted: for a draft or texts it was not trained on."""
    threshold: float | None = None
    """Survival probability above which the learned policy drafts another token. Default: from measured costs."""
    max_lookahead: int | None = None
    """Most tokens a round may draft. Default: the policy's own cap."""
    max_new_tokens: int = 128
    """Length of the response [tokens]."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Sample among the most likely tokens with this much probability together."""
    seed: int = 0
    """Seed of each response's own random generator."""
    dtype: str = "auto"
    """float32, bfloat16 or float16. Default: float32 on the CPU, else bfloat16."""
    device: str = "auto"
    """Device, such as cpu or cuda:0."""
    num_threads: int | None = None
    """CPU threads of PyTorch."""
    compile: bool = False
    """Compile the forwards first: a minute the first time, later less; then every token is quicker (CPU, decoders of
    Llama's shape; others run as they are)."""
    show_lookahead: bool = False
    """Colour what happened to each token: accepted draft, correction, bonus."""


def main(argv: list[str] | None = None) -> int:
    return run(GenerateConfig, _generate, lambda generations: None, _to_json, argv, prog="dsl-generate")


def _generate(config: GenerateConfig) -> "list[Generation]":
    from dsl_train.cli.generating import generate_all

    prompt = config.prompt
    if prompt is None and config.prompts is None:
        prompt = sys.stdin.read()
    return generate_all(config, prompt)


def _to_json(generations: "list[Generation]") -> dict[str, Any]:
    return {"generations": [{"text": generation.text, **generation.stats} for generation in generations]}


if __name__ == "__main__":
    sys.exit(main())
