"""Repeated passages: where the same suffix occurred earlier, and what followed it. Tokens only, incremental."""

from typing import NamedTuple

from .schema import COPY_CAP

_HASH_BASE, _HASH_MASK = 1_000_003, (1 << 61) - 1


class Match(NamedTuple):
    """The longest suffix that occurs in the committed text with a token behind it, at its latest occurrence."""

    length: int
    """At most COPY_CAP."""
    follower: int | None
    """Text index of the token behind it; None of no match."""


class CopyIndex:
    """Where each n-gram (n <= COPY_CAP) of the committed text was followed last. O(COPY_CAP) per token."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        """Committed."""
        self.match = Match(0, None)
        """Of the committed text."""
        self._followers: dict[int, int] = {}  # hash of an n-gram -> index of the token behind it

    def append(self, token_id: int) -> None:
        """Commit one token."""
        key, followers, here = 0, self._followers, len(self.token_ids)
        for earlier in reversed(self.token_ids[-COPY_CAP:]):
            key = (key * _HASH_BASE + earlier + 1) & _HASH_MASK
            followers[key] = here
        self.token_ids.append(token_id)
        self.match = self._continued(self.match, token_id) or self.longest_match([])

    def match_after(self, match: Match, block: list[int]) -> Match:
        """Of text + block, which begins with a token or more; `match` is the one before its last token."""
        return self._continued(match, block[-1]) or self.longest_match(block)

    def _continued(self, match: Match, token_id: int) -> Match | None:
        """If the token goes on as the match did, so does the match: no suffix grows by more than the token, and none
        that ends here occurred later. At the cap one might, and the end of the text is followed by nothing."""
        length, follower = match
        if follower is None or length == COPY_CAP or follower + 1 >= len(self.token_ids):
            return None
        return Match(length + 1, follower + 1) if self.token_ids[follower] == token_id else None

    def longest_match(self, block: list[int]) -> Match:
        """Of text + block, from nothing."""
        key, length, follower = 0, 0, None
        for token_id in reversed((self.token_ids[-COPY_CAP:] + block)[-COPY_CAP:]):
            key = (key * _HASH_BASE + token_id + 1) & _HASH_MASK
            found = self._followers.get(key)
            if found is None:
                break
            length, follower = length + 1, found
        return Match(length, follower)
