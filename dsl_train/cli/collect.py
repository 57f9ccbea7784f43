"""`dsl-collect`: prompts or responses in, a trace folder out."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dsl_train.cli.app import run
from dsl_train.collect.config import CollectConfig

if TYPE_CHECKING:
    from dsl_train.collect.estimate import Estimate
    from dsl_train.collect.shards import Collection

PUT_ASIDE = 3


def main(argv: Sequence[str] | None = None) -> int:
    return run(
        CollectConfig, _execute, _show, lambda result: result.to_dict(), argv, prog="dsl-collect", exit_code=_exit_code
    )


def _execute(config: CollectConfig) -> "Collection | Estimate":
    if config.dry_run:
        from dsl_train.collect.estimate import estimate

        return estimate(config)
    from dsl_train.collect.shards import collect

    return collect(config)


def _exit_code(result: "Collection | Estimate") -> int:
    from dsl_train.collect.shards import Collection

    return PUT_ASIDE if isinstance(result, Collection) and result.rejected else 0


def _show(result: "Collection | Estimate") -> None:
    from dsl_train.collect.shards import Collection

    if isinstance(result, Collection):
        _show_collection(result)
    else:
        _show_estimate(result)


def _show_collection(collection: "Collection") -> None:
    counts = collection.counts
    print(
        f"{counts.num_sequences:,} texts, {counts.num_tokens:,} tokens, {counts.acceptance_rate:.1%} of them drafted "
        f"right, {counts.num_rows:,} rows at {collection.rows_per_second:,.0f} a second\n"
        f"traces in {collection.folder}; next: dsl-train --traces {collection.traces} --output PREDICTOR_FOLDER"
    )
    if collection.rejected:
        first = collection.rejected[0]
        print(
            f"{len(collection.rejected):,} put aside, see {collection.folder / 'rejects'}; "
            f"{first.where}: {first.reason}",
            file=sys.stderr,
        )


def _show_estimate(estimate: "Estimate") -> None:
    shard = "" if estimate.num_shards == 1 else f", shard {estimate.shard} of {estimate.num_shards}"
    print(
        f"into {estimate.folder}{shard}, nothing written\n"
        f"texts    {estimate.num_texts:,} of {estimate.num_texts_of_all:,}; {estimate.num_rejects:,} rows put aside\n"
        f"parts    {estimate.num_parts_done:,} of {estimate.num_parts:,} done\n"
        f"tokens   about {estimate.num_tokens:,}, in {estimate.num_rows:,} rows\n"
        f"disk     about {estimate.disk_bytes / 1e6:,.1f} MB\n"
        f"memory   {estimate.peak_memory_bytes / 1e9:,.2f} GB at the peak\n"
        f"time     about {estimate.seconds_left:,.0f} s for what is left, loading not counted\n"
        f"by {estimate.num_measured} texts, measured in {estimate.measured_seconds:.2f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
