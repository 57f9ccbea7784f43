"""Predictors on the Hugging Face Hub: in the `dsl` folder of a draft's repository, or at the root of their own one.

The only door to huggingface_hub, which transformers installs. With `HF_HUB_OFFLINE=1` the network is not used.
"""

import os
import re
from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging

from dsl_train.base.records import DslError, first_line
from dsl_train.predictor.runtime import CONFIG, ONNX, SHIPPED, read_config, shipped_with

_FILES = (f"{SHIPPED}/*", CONFIG, ONNX, "custom_generate/*")
_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def push_predictor(
    repo: str,
    folder: str | Path,
    path_in_repo: str = SHIPPED,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload a predictor's folder to the model repository `repo`, created if missing; returns the commit's address.

    It goes to the repository's `dsl` folder, beside a draft's weights. `path_in_repo="."` fills a repository of its
    own instead, which `custom_generate="user/repository"` then runs. Logs and checkpoints of the training are not
    uploaded. Raises DslError if the folder holds no predictor or the Hub refuses.
    """
    folder = Path(folder)
    read_config(folder)
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            path_in_repo=path_in_repo,
            revision=revision,
            commit_message="Add the lookahead predictor",
            allow_patterns=["*.onnx", "config.json", "README.md", "custom_generate/*.py", "custom_generate/*.txt"],
            ignore_patterns=["training/*"],
        )
    except (OSError, HFValidationError) as error:
        raise DslError(
            f"{folder} could not be pushed to {_named(repo, revision)} ({first_line(error)}); check the name "
            "user/repository, and log in with `hf auth login` or pass token="
        ) from error
    return str(commit.commit_url)


def hide_loading_bars() -> None:
    """No progress bar of transformers for the rest of this process; those of downloads stay."""
    downloads_shown = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads_shown:
        enable_progress_bars()


def cached_revision(repo: str) -> str | None:
    """Commit of the main branch in the local cache, which is the one that was loaded; None if it is not there."""
    if not is_repository(repo):
        return None
    cached = (try_to_load_from_cache(repo, file) for file in ("config.json", "adapter_config.json"))
    return next((Path(file).parent.name for file in cached if isinstance(file, str)), None)  # snapshots/<commit>/


@lru_cache
def fetch_predictor(repo: str, revision: str | None = None) -> Path | None:
    """Folder of the predictor in a repository, downloaded unless it is in the local cache; None if there is none.

    The Hub is asked once a process which commit a branch points to. Raises DslError if the repository or the revision
    cannot be read.
    """
    try:
        snapshot = snapshot_download(repo, revision=revision, allow_patterns=list(_FILES))
    except (OSError, HFValidationError) as error:
        raise DslError(f"{repo} is no folder here, and {_named(repo, revision)} {_reason(error)}") from error
    return shipped_with(snapshot) or (Path(snapshot) if (Path(snapshot) / ONNX).is_file() else None)


def is_repository(name: str) -> bool:
    """Whether `name` can be a repository's name: it is no folder here and does not look like the path of one."""
    return bool(_REPOSITORY.fullmatch(name)) and not os.path.lexists(name)


def _reason(error: Exception) -> str:
    if isinstance(error, LocalEntryNotFoundError) or constants.HF_HUB_OFFLINE:
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        return f"is not in the local cache, and {offline}; download it once while online, or name a folder"
    return f"cannot be read from the Hub ({first_line(error)}); check name and revision, or log in with `hf auth login`"


def _named(repo: str, revision: str | None) -> str:
    return f"repository {repo} at revision {revision or 'main'}"
