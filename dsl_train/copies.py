"""Repeated passages: where the same suffix occurred earlier, and what followed it. Tokens only, incremental."""

from dsl_train.schema import COPY_CAP

_HASH_BASE, _HASH_MASK = 1_000_003, (1 << 61) - 1


class CopyIndex:
    """Where each n-gram (n <= COPY_CAP) of the committed text was followed last. O(COPY_CAP) per token."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        """Committed."""
        self._followers: dict[int, int] = {}  # hash of an n-gram -> index of the token behind it

    def append(self, token_id: int) -> None:
        """Commit one token."""
        key, followers, here = 0, self._followers, len(self.token_ids)
        for earlier in reversed(self.token_ids[-COPY_CAP:]):
            key = (key * _HASH_BASE + earlier + 1) & _HASH_MASK
            followers[key] = here
        self.token_ids.append(token_id)

    def longest_match(self, block: list[int]) -> tuple[int, int | None]:
        """Length of the longest suffix of text + block that occurs in the committed text with a follower, and the
        index of that follower (of the most recent occurrence)."""
        key, length, follower = 0, 0, None
        for token_id in reversed((self.token_ids[-COPY_CAP:] + block)[-COPY_CAP:]):
            key = (key * _HASH_BASE + token_id + 1) & _HASH_MASK
            found = self._followers.get(key)
            if found is None:
                break
            length, follower = length + 1, found
        return length, follower
