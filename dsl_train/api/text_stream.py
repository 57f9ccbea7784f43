"""Token ids to text as they come: whole characters only, spaces as the whole text would have them."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"


class TextStream:
    """Decodes a growing response; each piece of text is passed on once, in order.

    A short window is decoded again with every token, because a token's text can depend on the one before it and a
    character can span several.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self._window: list[int] = []
        self._shown = ""  # what has been passed on of the window's text

    def push(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            self._window.append(token_id)
            text = self._decode()
            if not text.endswith(_UNFINISHED):
                self._pass_on(text)
                self._window = self._window[-1:]
                self._shown = self._decode()

    def end(self) -> None:
        """Pass on what is left, unfinished characters included."""
        self._pass_on(self._decode())

    def _pass_on(self, text: str) -> None:
        if len(text) > len(self._shown):
            self.on_text(text[len(self._shown) :])
            self._shown = text

    def _decode(self) -> str:
        return str(self.tokenizer.decode(self._window, skip_special_tokens=True))
