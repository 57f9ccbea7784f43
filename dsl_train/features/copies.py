"""Repeated passages: where the same suffix occurred earlier, and what followed it. Tokens only, incremental."""

from typing import NamedTuple

from dsl_train.base.schema import COPY_CAP

_HASH_BASE, _HASH_MASK = 1_000_003, (1 << 61) - 1


class Match(NamedTuple):
    """The longest suffix that occurs in the committed text with a token behind it, at its latest occurrence."""

    length: int
    """At most COPY_CAP."""
    follower: int | None
    """Text index of the token behind it; None of no match."""


class CopyIndex:
    """Where n-grams (n <= COPY_CAP) of the committed text were followed last.

    An n-gram that occurred once is found through its shortest suffix that occurred once, at the same place, by
    comparing tokens from there on: like a suffix tree that is only as deep as the text repeats itself. So a token costs
    as many entries as its text repeats, not COPY_CAP.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        """Committed."""
        self.match = Match(0, None)
        """Of the committed text."""
        self._followers: dict[int, int] = {}  # hash of an n-gram -> index of the token behind it

    def append(self, token_id: int) -> None:
        """Commit one token."""
        self._enter_suffixes()
        self.token_ids.append(token_id)
        self.match = self._continued(self.match, token_id) or self.longest_match([])

    def match_after(self, match: Match, block: list[int]) -> Match:
        """Of text + block, which begins with a token or more; `match` is the one before its last token."""
        return self._continued(match, block[-1]) or self.longest_match(block)

    def _enter_suffixes(self) -> None:
        """Those of the text, now that a token follows: all that occurred before, and the shortest that did not. And the
        one that sets the earlier place apart from this one, which until now was found through what they share."""
        tokens, followers, here = self.token_ids, self._followers, len(self.token_ids)
        length, earlier = self.match
        key = 0
        for token_id in tokens[: -length - 1 : -1]:
            key = (key * _HASH_BASE + token_id + 1) & _HASH_MASK
            followers[key] = here
        if length == COPY_CAP:
            return
        if length < here:
            followers[(key * _HASH_BASE + tokens[-length - 1] + 1) & _HASH_MASK] = here
        if earlier is not None and length < earlier:
            followers.setdefault((key * _HASH_BASE + tokens[earlier - length - 1] + 1) & _HASH_MASK, earlier)

    def _continued(self, match: Match, token_id: int) -> Match | None:
        """If the token goes on as the match did, so does the match: no suffix grows by more than the token, and none
        that ends here occurred later. At the cap one might, and the end of the text is followed by nothing."""
        length, follower = match
        if follower is None or length == COPY_CAP or follower + 1 >= len(self.token_ids):
            return None
        return Match(length + 1, follower + 1) if self.token_ids[follower] == token_id else None

    def longest_match(self, block: list[int]) -> Match:
        """Of text + block, from nothing."""
        tokens = self.token_ids
        suffix = block[: -COPY_CAP - 1 : -1]  # from its last token backwards
        suffix += tokens[: len(suffix) - COPY_CAP - 1 : -1] if len(suffix) < COPY_CAP else []
        key, length, follower = 0, 0, None
        for token_id in suffix:
            key = (key * _HASH_BASE + token_id + 1) & _HASH_MASK
            found = self._followers.get(key)
            if found is None:
                break
            length, follower = length + 1, found
        if follower is None:
            return Match(0, None)
        longest = min(len(suffix), follower)
        while length < longest and tokens[follower - length - 1] == suffix[length]:
            length += 1
        return Match(length, follower)
