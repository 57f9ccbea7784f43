"""Repeated passages: which token followed the same suffix earlier. Tokens only, incremental."""

from dsl_train.schema import COPY_CAP

_HASH_BASE, _HASH_MASK = 1_000_003, (1 << 61) - 1


class CopyIndex:
    """Which token followed each n-gram (n <= COPY_CAP) of the committed text last. O(COPY_CAP) per token."""

    def __init__(self) -> None:
        self._followers: dict[int, int] = {}  # hash of an n-gram -> token
        self._tail: list[int] = []  # last COPY_CAP committed tokens

    def append(self, token_id: int) -> None:
        """Commit one token."""
        key, followers = 0, self._followers
        for earlier in reversed(self._tail):
            key = (key * _HASH_BASE + earlier + 1) & _HASH_MASK
            followers[key] = token_id
        self._tail.append(token_id)
        del self._tail[:-COPY_CAP]

    def longest_match(self, block: list[int]) -> tuple[int, int | None]:
        """Length of the longest suffix of text + block that occurs in the committed text with a follower, and that
        follower (of the most recent occurrence)."""
        key, length, follower = 0, 0, None
        for token_id in reversed((self._tail + block)[-COPY_CAP:]):
            key = (key * _HASH_BASE + token_id + 1) & _HASH_MASK
            found = self._followers.get(key)
            if found is None:
                break
            length, follower = length + 1, found
        return length, follower
