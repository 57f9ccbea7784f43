"""What dsl-generate prints: streamed text, what happened to each token, statistics."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from dsl_train.api.speculator import Generation, Prompt, Speculator
from dsl_train.api.text_stream import TextStream
from dsl_train.base.records import Round
from dsl_train.base.sampling import Sampling

_STYLES = {"accepted": "green", "corrected": "red", "bonus": "cyan"}


class Writer:
    """Continues prompts and streams them to stdout; statistics go to stderr."""

    def __init__(
        self, speculator: Speculator, sampling: Sampling, max_new_tokens: int, seed: int, show_lookahead: bool
    ) -> None:
        self.speculator, self.sampling, self.seed = speculator, sampling, seed
        self.max_new_tokens, self.show_lookahead = max_new_tokens, show_lookahead
        self.console = Console(highlight=False, soft_wrap=True)
        self.notes = Console(stderr=True, highlight=False)
        if show_lookahead:
            self.notes.print(Text.assemble(*((f" {name} ", style) for name, style in _STYLES.items())))

    def note(self, text: str) -> None:
        """One line on stderr."""
        self.notes.print(Text(text, style="dim"), soft_wrap=True)

    def note_costs(self, costs: dict[str, Any]) -> None:
        """One line on stderr: what the policy goes by at the moment (`serving.costs_in_use`)."""
        widest = len(costs["verification"])
        self.note(
            f"costs in use: a draft step {1e3 * costs['draft_step']:.2f} ms, a target step "
            f"{1e3 * costs['target_step']:.2f} ms (c = {costs['c']:.3f}), {widest} tokens verified in "
            f"{1e3 * costs['verification'][-1]:.2f} ms; drafts on while survival > {costs['threshold']:.3f}"
        )

    def show_prompt(self, text: str) -> None:
        self.console.print(Text(text, style="dim"), end="")

    def write(self, prompt: Prompt, resume: bool = False) -> Generation:
        """Continue a prompt; `resume` as in :meth:`Speculator.generate`."""
        show = _RoundPrinter(self.console, self.speculator, self.show_lookahead)
        generation = self.speculator.generate(
            prompt, self.sampling, self.max_new_tokens, self.seed, on_round=show, resume=resume
        )
        show.end()
        self.note(_summary(generation, self.speculator.policy.name))
        return generation

    def rule(self) -> None:
        """A line between two texts."""
        self.console.rule(style="dim")


class _RoundPrinter:
    """Prints a round's tokens as they are committed, coloured by what became of them if asked to."""

    def __init__(self, console: Console, speculator: Speculator, coloured: bool) -> None:
        self.console, self.coloured, self._style = console, coloured, ""
        self.stream = TextStream(speculator.pair.tokenizer, self._print)

    def __call__(self, finished: Round) -> None:
        self.push(finished.committed, finished.num_accepted, "bonus" if finished.all_accepted else "corrected")

    def push(self, token_ids: Sequence[int], num_accepted: int, last: str) -> None:
        for number, token_id in enumerate(token_ids):
            self._style = _STYLES["accepted" if number < num_accepted else last] if self.coloured else ""
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
