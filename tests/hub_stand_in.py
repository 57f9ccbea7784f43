"""The Hub for tests: the layout of its cache's folders, and an API that keeps what it is given."""

import shutil
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub.utils import filter_repo_objects

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


class StandIn:
    """The Hub: what is uploaded appears in the local cache as if it had been downloaded."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.tokens = cache, []

    def folder(self, repo: str, revision: str = "main") -> Path:
        """Where a revision's files lie."""
        found = self.cache / f"models--{repo.replace('/', '--')}"
        (found / "refs").mkdir(parents=True, exist_ok=True)
        (found / "refs" / revision).write_text(COMMITS[revision])
        snapshot = found / "snapshots" / COMMITS[revision]
        snapshot.mkdir(parents=True, exist_ok=True)
        return snapshot

    def __call__(self, token=None):
        self.tokens.append(token)
        return self

    def create_repo(self, repo, private, exist_ok):
        assert exist_ok
        self.folder(repo)

    def upload_folder(
        self, repo_id, folder_path, path_in_repo, revision, commit_message, allow_patterns, ignore_patterns
    ):
        names = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            copy = self.folder(repo_id, revision or "main") / path_in_repo / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder_path / name, copy)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")
