"""Conversations of dsl-generate --chat: the target's chat template writes the prompt, turns share the caches."""

from collections.abc import Callable, Sequence

from dsl_train.api.speculator import Generation
from dsl_train.base.records import DslError
from dsl_train.cli.generating import Writer

PROMPT = "> "
Messages = list[dict[str, str]]
"""Each with `role` and `content`."""


class Conversation:
    """Messages so far; each answer is added to them."""

    def __init__(self, writer: Writer, system: str | None) -> None:
        """Raises DslError if the target's tokenizer has no chat template."""
        self.writer, self.pair = writer, writer.speculator.pair
        if not self.pair.tokenizer.chat_template:
            raise DslError(f"target {self.pair.target_identity.id} has no chat template; leave --chat out")
        self.messages: Messages = [{"role": "system", "content": system}] if system else []

    def ask(self, question: str) -> Generation:
        """One user turn and its answer."""
        self.messages.append({"role": "user", "content": question})
        try:
            ids = self.pair.tokenizer.apply_chat_template(self.messages, add_generation_prompt=True, return_dict=False)
        except Exception as error:  # a template is a program: it may refuse roles and their order in its own way
            raise DslError(f"the chat template of {self.pair.target_identity.id} refuses the turn: {error}") from error
        generation = self.writer.write(ids, resume=True)  # type: ignore[arg-type]  # of many kinds by its options
        self.messages.append({"role": "assistant", "content": generation.text})
        return generation


def answer_turns(writer: Writer, system: str | None, turns: Sequence[str]) -> list[Generation]:
    """A conversation whose user turns are given."""
    conversation, answers = Conversation(writer, system), []
    for turn in turns:
        writer.show_prompt(f"{PROMPT}{turn}\n")
        answers.append(conversation.ask(turn))
    return answers


def converse(writer: Writer, system: str | None, read_line: Callable[[str], str] = input) -> list[Generation]:
    """A conversation in the terminal, until the input ends (Ctrl-D) or is interrupted (Ctrl-C)."""
    conversation, answers = Conversation(writer, system), []
    writer.note("Ask something. Ctrl-D ends the conversation.")
    while True:
        try:
            question = read_line(PROMPT).strip()
            if question:
                answers.append(conversation.ask(question))
        except (EOFError, KeyboardInterrupt):
            writer.console.print()
            return answers
