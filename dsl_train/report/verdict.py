"""The verdict of `dsl-bench --mode verify` for people: the laws tested, what differed, what could not hide."""

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dsl_train.bench.distribution import POWER
from dsl_train.bench.live import Mismatch
from dsl_train.bench.lossless import FALSE_ALARM, LawCheck, VerifyResult

_MAX_MISMATCHES = 10


def verdict(result: VerifyResult) -> Group:
    return Group(_law_table(result), *map(_mismatch_line, result.mismatches[:_MAX_MISMATCHES]), *_remarks(result))


def _law_table(result: VerifyResult) -> Table:
    sampling = result.sampling
    settings = f"temperature {sampling.temperature:g}, top_k {sampling.top_k}, top_p {sampling.top_p:g}"
    table = Table(title=f"first tokens against the target's exact law: {settings}", title_justify="left")
    table.box = box.SIMPLE_HEAD
    for header in ("policy", "prompt"):
        table.add_column(header, no_wrap=True)
    for header in ("texts", "cells", "chi-square", "p-value", "would have seen", "verdict"):
        table.add_column(header, justify="right")
    for check in result.laws:
        table.add_row(*_law_row(check), style="" if check.passed else "bold red")
    return table


def _law_row(check: LawCheck) -> list[str]:
    fit = check.fit
    numbers = [str(fit.num_draws), str(fit.num_cells), f"{fit.statistic:.1f}", f"{fit.p_value:.2g}"]
    return [check.policy, check.prompt_id, *numbers, f"{fit.detectable:.1%}", "ok" if check.passed else "BIASED"]


def _mismatch_line(mismatch: Mismatch) -> Text:
    differs = f"token {mismatch.index} is {mismatch.found}, the target's own is {mismatch.expected}"
    return Text(f"DIFFERENT {mismatch.policy}, prompt {mismatch.prompt_id}: {differs}", style="bold red")


def _remarks(result: VerifyResult) -> list[Text]:
    tested = f"{len(result.policies)} policies on {result.num_prompts} prompts"
    rounding = "" if result.dtype == "float32" else f" ({result.dtype}: rounding alone can do that; verify in float32)"
    if result.mismatches:
        greedy = f"greedy: {len(result.mismatches)} texts of {tested} are not the target's own"
    else:
        greedy = f"greedy: every text of {tested}, and of transformers, is the target's own"
    sampled = (
        f"sampled: {len(result.biased)} of {len(result.laws)} laws differ from the target's (p < {result.level:.1g}); "
        f"a lossless run is accused once in {1 / FALSE_ALARM:.0f} times, "
        f"a bias that moves the stated share of texts is seen {POWER:.0%} of the time"
    )
    final = "LOSSLESS" if result.lossless else f"NOT LOSSLESS{rounding}"
    return [Text(greedy), Text(sampled), Text(final, style="bold" if result.lossless else "bold red")]
