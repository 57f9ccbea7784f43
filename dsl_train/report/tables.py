"""Tables on the terminal. Knows results; computes nothing but units."""

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dsl_train.base.cost import CostProfile
from dsl_train.bench.config import AUTOREGRESSIVE, is_learned
from dsl_train.bench.distribution import POWER
from dsl_train.bench.live import GroupResult, LiveResult, Mismatch, PolicyResult
from dsl_train.bench.lossless import FALSE_ALARM, LawCheck, VerifyResult
from dsl_train.bench.replay import ReplayTable
from dsl_train.bench.statistics import Interval

_MAX_MISMATCHES = 10
_UNLIMITED = 10_000  # columns, more than any table has


def show(result: LiveResult | ReplayTable | CostProfile | VerifyResult) -> None:
    """Print a result on standard output."""
    if isinstance(result, LiveResult):
        print_whole(live_table(result), *live_remarks(result), *([group_table(result)] if result.groups else []))
    elif isinstance(result, ReplayTable):
        print_whole(replay_table(result), *replay_remarks(result))
    elif isinstance(result, VerifyResult):
        print_whole(verdict(result))
    else:
        print_whole(cost_table(result))


def print_whole(*parts: RenderableType) -> None:
    """One below the other on standard output; where that is no terminal, as wide as the widest needs."""
    console = Console()
    if not console.is_terminal:
        unlimited = console.options.update_width(_UNLIMITED)
        widest = max(Measurement.get(console, unlimited, part).maximum for part in parts)
        console.width = max(console.width, widest)
    console.print(*parts, sep="\n")


def live_table(result: LiveResult) -> Table:
    sampling = "greedy" if result.greedy else "sampling"
    table = _table(f"{result.num_prompts} prompts, {sampling}, {result.dtype}; 95 % intervals by prompt")
    headers = ["tokens/s", "x autoregressive"]
    headers += [f"vs {name}" for name in _best_statics(result)]
    for header in [*headers, "tokens/round", "accepted"]:
        table.add_column(header, justify="right")
    for policy in result.policies:
        table.add_row(*_live_row(policy, result), style="bold" if is_learned(policy.name) else "")
    return table


def group_table(result: LiveResult) -> Table:
    """A row for each group of prompts and one for all: the learned policy, or the last one, beside the others."""
    shown = next((policy.name for policy in result.policies if is_learned(policy.name)), result.policies[-1].name)
    table = _table(f"by group: {shown}; 95 % intervals by prompt", "group")
    headers = ["prompts", "target alone", shown, "x target alone"]
    headers += [f"vs {result.best_static}", "vs best static there"] if result.best_static else []
    for header in [*headers, "tokens/round", "accepted"]:
        table.add_column(header, justify="right")
    whole = GroupResult("all", result.num_prompts, result.policies, result.best_static_here)
    for group in (*result.groups, whole):
        policy = group[shown]
        cells = [group.name, str(group.num_prompts), f"{group[AUTOREGRESSIVE].tokens_per_second.estimate:.1f}"]
        cells += [f"{policy.tokens_per_second.estimate:.1f}", with_interval(policy.relative_to[AUTOREGRESSIVE], ".2f")]
        if result.best_static and group.best_static:
            there = f"{as_gain(policy.relative_to[group.best_static])} ({group.best_static.partition(':')[2]})"
            cells += [as_gain(policy.relative_to[result.best_static]), there]
        stats = policy.stats
        cells += [f"{stats.mean_acceptance_length:.2f}", f"{stats.draft_acceptance_rate:.0%}"]
        table.add_row(*cells, style="bold" if group is whole else "")
    return table


def _best_statics(result: LiveResult) -> list[str]:
    """Chosen on other prompts, if any, and on these."""
    return [name for name in dict.fromkeys((result.best_static, result.best_static_here)) if name]


def _live_row(policy: PolicyResult, result: LiveResult) -> list[str]:
    cells = [policy.name, with_interval(policy.tokens_per_second, ".1f")]
    cells.append(with_interval(policy.relative_to[AUTOREGRESSIVE], ".2f"))
    cells += [as_gain(policy.relative_to[name]) for name in _best_statics(result)]
    if not policy.stats.num_spec_steps:
        return [*cells, "", ""]
    return [*cells, f"{policy.stats.mean_acceptance_length:.2f}", f"{policy.stats.draft_acceptance_rate:.0%}"]


def live_remarks(result: LiveResult) -> list[Text]:
    """What the table cannot say: costs, notes, whether outputs were the target's own."""
    remarks = [f"{policy.name}: {policy.note}" for policy in result.policies if policy.note]
    if result.cost:
        remarks.append(
            f"learned: drafts on while survival > {result.threshold:.3f}; "
            f"a draft token costs {result.cost.c_eff:.3f} target steps (c = {result.cost.c:.3f})"
        )
    if result.greedy and not result.mismatches:
        remarks.append("every output equals the target's own, token by token")
    texts = [*map(Text, remarks), *map(_mismatch_line, result.mismatches[:_MAX_MISMATCHES])]
    if result.mismatches:
        texts.append(Text(_mismatch_summary(result), style="bold red" if result.failed else ""))
    return texts


def _mismatch_summary(result: LiveResult) -> str:
    policies = len({mismatch.policy for mismatch in result.mismatches})
    why = "" if result.failed else f"; in {result.dtype}, ties between logits may fall either way"
    return f"{len(result.mismatches)} outputs of {policies} policies differ from the target's own{why}"


def replay_table(result: ReplayTable) -> Table:
    table = _table(f"{result.num_prompts} prompts: tokens per target step and gain over best static")
    for i, c in enumerate(result.costs):
        best = f"\n(best {result.best_static[i]})" if result.best_static else ""
        table.add_column(f"c = {c:.3g}{best}", justify="right")
    for row in result.rows:
        cells = [f"{interval.estimate:.3f}" for interval in row.rates]
        if row.chosen:
            cells = [f"{cell} ({_setting(spec)})" for cell, spec in zip(cells, row.chosen, strict=True)]
        if not row.policy.startswith("static:"):
            cells = [f"{cell}\n{as_gain(gain)}" for cell, gain in zip(cells, row.vs_best_static, strict=False)] or cells
        table.add_row(row.policy, *cells, style="bold" if is_learned(row.policy) else "")
    return table


def _setting(spec: str) -> str:
    """`0.4,20` of `confidence:0.4,20`; of a fitted rule the threshold only."""
    arguments = spec.partition(":")[2].split(",")
    return ",".join(arguments if len(arguments) <= 2 else arguments[:1])


def replay_remarks(result: ReplayTable) -> list[str]:
    """What was averaged, how far the learned policy goes towards the bounds, and warnings."""
    remarks = [f"coupling draws averaged for each text: {result.coupling_draws}"]
    for gap in result.gaps:
        shares = (f"{_share(share)} at c = {c:.3g}" for c, share in zip(result.costs, gap.shares, strict=True))
        remarks.append(f"{gap.policy} closes, of the gap from best static to {gap.bound}: {', '.join(shares)}")
    return [*remarks, *result.warnings]


def _share(share: Interval) -> str:
    return f"{share.estimate:.0%} [{share.lower:.0%}, {share.upper:.0%}]"


def cost_table(cost: CostProfile) -> Table:
    table = _table("what a step costs here (medians)", "step")
    for header in ("time", "in target steps", "quartiles [ms]"):
        table.add_column(header, justify="right")
    steps = cost.target_steps or (cost.target_step,)
    for name, seconds, timed in (
        ("target, 1 new token", steps[0], "target"),
        *((f"target, {width} new tokens", step, "") for width, step in enumerate(steps[1:], 2)),
        ("target, each further token", cost.target_step_per_token, ""),
        ("draft", cost.draft_step, "draft"),
        ("its largest probabilities", cost.confidence, ""),
        ("and its entropy", cost.primitives, ""),
        ("features and predictor, a draft", cost.predictor, ""),
        ("features and predictor, a round", cost.predictor_round, ""),
        ("round, beyond its forwards", cost.round_overhead, ""),
    ):
        spread = " ... ".join(f"{bound * 1e3:.3f}" for bound in cost.spread.get(timed, ()))
        table.add_row(name, f"{seconds * 1e3:.3f} ms", f"{seconds / cost.target_step:.3f}", spread)
    table.add_section()
    table.add_row("c (draft / target)", "", f"{cost.c:.3f}")
    table.add_row("c_eff (one more draft token, all included)", "", f"{cost.c_eff:.3f}")
    table.add_row("jump (drafting at all)", "", f"{cost.jump:.3f}")
    return table


def verdict(result: VerifyResult) -> Group:
    return Group(_law_table(result), *map(_mismatch_line, result.mismatches[:_MAX_MISMATCHES]), *_remarks(result))


def _law_table(result: VerifyResult) -> Table:
    sampling = result.sampling
    settings = f"temperature {sampling.temperature:g}, top_k {sampling.top_k}, top_p {sampling.top_p:g}"
    table = _table(f"first tokens against the target's exact law: {settings}")
    table.add_column("prompt", no_wrap=True)
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


def _table(title: str, first_column: str = "policy") -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first_column, no_wrap=True)
    return table


def with_interval(interval: Interval, form: str) -> str:
    """`12.3 [11.9, 12.8]`"""
    return f"{interval.estimate:{form}} [{interval.lower:{form}}, {interval.upper:{form}}]"


def as_gain(ratio: Interval) -> str:
    """`+7.1 % [+5.0, +9.3]`; a policy against itself is left empty."""
    if ratio.lower == ratio.upper == 1.0:
        return ""
    low, middle, high = (100 * (value - 1) for value in (ratio.lower, ratio.estimate, ratio.upper))
    return f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}]"
