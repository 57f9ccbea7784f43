"""dsl-generate: continue prompts with a draft whose lookahead is learned."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dsl_train.cli.app import run

if TYPE_CHECKING:
    from dsl_train.api.speculator import Generation
    from dsl_train.cli.generating import Writer


@dataclass
class GenerateConfig:
    """Continue prompts with exactly the target's own output, faster: a small draft proposes, the target verifies,
    and the predictor shipped beside the draft decides how far to draft. The prompt comes from --prompt, --prompts or
    standard input."""

    target: str
    """Folder or Hub id of the target model, or of a PEFT adapter of it; or a GGUF file."""
    draft: str
    """Folder or Hub id of the draft model, or of a PEFT adapter of it; or a GGUF file."""
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
    draft_temperature: float | None = None
    """At which the draft draws when sampling; 0: its most likely token. Default: as the predictor was trained, else the
    temperature."""
    verification: Literal["block", "token"] = "block"
    """Judge sampled blocks as a whole, which keeps more of them, or token by token."""
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
    chat: bool = False
    """Ask an instruct model: the prompt goes through the target's chat template, and all turns of a --prompts row are
    answered one after another. Without a prompt, in a terminal, it is a conversation."""
    system: str | None = None
    """System message of --chat. Default: the chat template's own."""

    def __post_init__(self) -> None:
        if self.system is not None and not self.chat:
            raise ValueError("--system is the system message of a chat; add --chat")
        if self.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens must be at least 1, not {self.max_new_tokens}")
        from dsl_train.base.sampling import Sampling

        Sampling(
            self.temperature, self.top_k, self.top_p, self.draft_temperature
        )  # raises ValueError for what no sampler has


@dataclass(frozen=True)
class Generated:
    """All that a command wrote."""

    generations: "list[Generation]"
    costs: dict[str, Any] | None
    """What the policy went by in the end (`serving.costs_in_use`)."""

    def to_dict(self) -> dict[str, Any]:
        texts = [{"text": generation.text, **generation.stats} for generation in self.generations]
        return {"generations": texts, "costs": self.costs}


def main(argv: list[str] | None = None) -> int:
    return run(GenerateConfig, _execute, lambda _: None, Generated.to_dict, argv, prog="dsl-generate")


def _execute(config: GenerateConfig) -> Generated:
    import torch

    from dsl_train.api.serving import costs_in_use
    from dsl_train.api.speculator import Speculator
    from dsl_train.base.sampling import Sampling
    from dsl_train.cli.generating import Writer
    from dsl_train.pair.loading import load_pair

    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.draft_temperature)
    pair = load_pair(config.target, config.draft, config.dtype, config.device)
    speculator = Speculator(
        *(pair, config.policy, config.predictor, config.threshold, config.max_lookahead, config.compile),
        verification=config.verification,
    )
    writer = Writer(speculator, sampling, config.max_new_tokens, config.seed, config.show_lookahead)
    if config.compile:
        writer.note(f"warmed up in {speculator.warm_up_seconds:.1f} s")
    generations = _generate(config, writer)
    costs = costs_in_use(speculator.policy)
    if costs:
        writer.note_costs(costs)
    return Generated(generations, costs)


def _generate(config: GenerateConfig, writer: "Writer") -> "list[Generation]":
    """Continue the prompts, or answer them."""
    from dsl_train.cli.chat import answer_turns, converse
    from dsl_train.collect.prompts import read_turns

    if not config.chat:
        if writer.speculator.pair.tokenizer.chat_template:
            writer.note(f"{config.target} has a chat template: --chat asks it instead of continuing the text")
        return _continue_all(config, writer)
    if config.prompts is not None:
        conversations = read_turns(config.prompts, config.column, config.num_prompts)
        return [answer for turns in conversations for answer in answer_turns(writer, config.system, turns)]
    if config.prompt is None and sys.stdin.isatty():
        return converse(writer, config.system)
    return answer_turns(writer, config.system, [_asked(config)])


def _continue_all(config: GenerateConfig, writer: "Writer") -> "list[Generation]":
    """Continue every prompt as it is."""
    from dsl_train.collect.audio import Audio
    from dsl_train.collect.prompts import Prompt, read_prompts

    pair = writer.speculator.pair
    if config.prompts is not None and config.prompt is None:
        prompts = read_prompts(config.prompts, config.column, config.num_prompts, pair.tokenizer, kind=pair.kind)
    else:
        prompt = _asked(config)
        prompts = [Prompt("", audio=Audio(prompt.strip())) if pair.kind == "speech" else Prompt("", prompt)]
    generations = []
    for number, item in enumerate(prompts):
        if number:
            writer.rule()
        writer.show_prompt(item.text)
        generations.append(writer.write(item.encode_for(pair)))
    return generations


def _asked(config: GenerateConfig) -> str:
    """The prompt of the command line or of standard input. Raises DslError for bytes that are no UTF-8."""
    from dsl_train.base.records import DslError
    from dsl_train.collect.prompts import encodable

    if config.prompt is not None:
        return encodable("--prompt", config.prompt)
    try:
        return encodable("standard input", sys.stdin.read())
    except UnicodeDecodeError as error:
        raise DslError(f"standard input cannot be read as UTF-8 text ({error}); convert it") from error


if __name__ == "__main__":
    sys.exit(main())
