"""What dsl-generate prints: streamed text, what happened to each token, statistics."""

from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.text import Text

from dsl_train.api.speculator import Generation, Speculator
from dsl_train.api.text_stream import TextStream
from dsl_train.base.records import Round
from dsl_train.base.sampling import Sampling
from dsl_train.collect.audio import Audio
from dsl_train.collect.prompts import Prompt, read_prompts
from dsl_train.pair.loading import load_pair

if TYPE_CHECKING:
    from dsl_train.cli.generate import GenerateConfig

_STYLES = {"accepted": "green", "corrected": "red", "bonus": "cyan"}


def generate_all(config: "GenerateConfig", prompt: str | None) -> list[Generation]:
    """Continue every prompt, streaming to stdout; statistics go to stderr."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    sampling = Sampling(config.temperature, config.top_k, config.top_p)
    pair = load_pair(config.target, config.draft, config.dtype, config.device)
    policy = f"{config.policy}:adapt" if config.adapt else config.policy
    speculator = Speculator(pair, policy, config.predictor, config.threshold, config.max_lookahead, config.compile)
    if prompt is not None:
        prompts = [Prompt("", audio=Audio(prompt.strip())) if pair.kind == "speech" else Prompt("", prompt)]
    else:
        prompts = read_prompts(str(config.prompts), config.column, config.num_prompts, pair.tokenizer, kind=pair.kind)
    console, notes = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False)
    if config.compile:
        notes.print(f"warmed up in {speculator.warm_up_seconds:.1f} s", style="dim")
    if config.show_lookahead:
        notes.print(Text.assemble(*((f" {name} ", style) for name, style in _STYLES.items())))
    generations = []
    for number, item in enumerate(prompts):
        show = _RoundPrinter(console, speculator, config.show_lookahead)
        if number:
            console.rule(style="dim")
        console.print(Text(item.text, style="dim"), end="")
        generations.append(
            speculator.generate(item.encode_for(pair), sampling, config.max_new_tokens, config.seed, on_round=show)
        )
        show.end()
        notes.print(_summary(generations[-1], speculator.policy.name), style="dim")
    return generations


class _RoundPrinter:
    """Prints a round's tokens as they are committed, coloured by what became of them if asked to."""

    def __init__(self, console: Console, speculator: Speculator, coloured: bool) -> None:
        self.console, self.coloured, self._style = console, coloured, ""
        self.stream = TextStream(speculator.pair.tokenizer, self._print)

    def __call__(self, finished: Round) -> None:
        for i, token_id in enumerate(finished.committed):
            extra = "bonus" if finished.all_accepted else "corrected"
            self._style = _STYLES["accepted" if i < finished.num_accepted else extra] if self.coloured else ""
            self.stream.push([token_id])

    def end(self) -> None:
        self.stream.end()
        self.console.print()

    def _print(self, text: str) -> None:
        self.console.print(Text(text, style=self._style), end="")
        self.console.file.flush()


def _summary(generation: Generation, policy: str) -> str:
    result, stats = generation.result, generation.result.stats
    return (
        f"{policy}: {result.num_tokens} tokens in {result.seconds:.2f} s, {result.tokens_per_second:.1f} tokens/s; "
        f"{stats.num_spec_steps} rounds, {stats.mean_acceptance_length:.2f} tokens a round, "
        f"{stats.num_accepted_draft_tokens} of {stats.num_draft_tokens} drafted tokens accepted "
        f"({stats.draft_acceptance_rate:.0%}); ended by {result.finish_reason}"
    )
