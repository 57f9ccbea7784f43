"""`dsl-collect`: prompts in, a trace folder out."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dsl_train.cli.app import run
from dsl_train.collect.config import CollectConfig

if TYPE_CHECKING:
    from dsl_train.collect.shards import Collection


def main(argv: Sequence[str] | None = None) -> int:
    return run(CollectConfig, _execute, _show, lambda collection: collection.to_dict(), argv, prog="dsl-collect")


def _execute(config: CollectConfig) -> "Collection":
    from dsl_train.collect.shards import collect

    return collect(config)


def _show(collection: "Collection") -> None:
    counts = collection.counts
    print(
        f"{counts.num_sequences:,} texts, {counts.num_tokens:,} tokens, {counts.acceptance_rate:.1%} of them drafted "
        f"right, {counts.num_rows:,} rows at {collection.rows_per_second:,.0f} a second\n"
        f"traces in {collection.folder}; next: dsl-train --traces {collection.folder} --output PREDICTOR_FOLDER"
    )
    if collection.rejects:
        first = collection.rejects[0]["reason"]
        print(
            f"{len(collection.rejects)} prompts put aside, see {collection.folder / 'rejects'}: {first}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
