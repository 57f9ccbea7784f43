"""Finds repeated passages: where the suffix of a text occurred before, and which token followed it there.

Works on token ids only and is extended token by token.
"""

from typing import NamedTuple

from dsl_train.base.schema import COPY_CAP

_HASH_BASE, _HASH_MASK = 1_000_003, (1 << 61) - 1


class SuffixMatch(NamedTuple):
    """The longest suffix that occurs in the committed text with a token after it, at its latest occurrence."""

    length: int
    """At most COPY_CAP."""
    follower: int | None
    """Text index of the token after that occurrence; None if there is no match."""


class SuffixIndex:
    """Maps each n-gram (n <= COPY_CAP) of the committed text to the token that followed its latest occurrence.

    An n-gram that occurred only once has no entry of its own. It is found through its shortest suffix that also
    occurred only once, by comparing the tokens before that suffix. The index is therefore only as deep as the text
    repeats itself: a token adds one entry per repeated suffix instead of COPY_CAP entries.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        """The committed text."""
        self.match = SuffixMatch(0, None)
        """The match of the committed text itself."""
        self._followers: dict[int, int] = {}  # hash of an n-gram -> text index of the token after it

    def append(self, token_id: int) -> None:
        """Commit one token."""
        self._enter_suffixes()
        self.token_ids.append(token_id)
        self.match = self._continued(self.match, token_id) or self.longest_match([])

    def match_after(self, match: SuffixMatch, block: list[int]) -> SuffixMatch:
        """The match of text + block, which holds at least one token; `match` is the one before its last token."""
        return self._continued(match, block[-1]) or self.longest_match(block)

    def _enter_suffixes(self) -> None:
        """Enter the suffixes of the text, now that a token follows it: all that occurred before, and the shortest that
        did not. Also enter the suffix that tells the earlier occurrence apart from this one, because until now the
        earlier one was found through the suffix that both share."""
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

    def _continued(self, match: SuffixMatch, token_id: int) -> SuffixMatch | None:
        """The match one token longer, if `token_id` is the token that followed it; None if the match has to be searched
        anew. A longer suffix cannot appear, because a suffix grows by the one token only. Two cases are searched anew:
        at the cap, a later occurrence may match as well, and the end of the text has no token after it."""
        length, follower = match
        if follower is None or length == COPY_CAP or follower + 1 >= len(self.token_ids):
            return None
        return SuffixMatch(length + 1, follower + 1) if self.token_ids[follower] == token_id else None

    def longest_match(self, block: list[int]) -> SuffixMatch:
        """The match of text + block, searched without an earlier match."""
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
            return SuffixMatch(0, None)
        longest = min(len(suffix), follower)
        while length < longest and tokens[follower - length - 1] == suffix[length]:
            length += 1
        return SuffixMatch(length, follower)
