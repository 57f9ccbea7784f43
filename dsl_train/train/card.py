"""Writes the artifact's README.md from its config.json."""

from collections.abc import Mapping
from typing import Any


def card(config: Mapping[str, Any]) -> str:
    """A model card in Markdown: what it is, for which pair, how good, how to use it."""
    target, draft, metrics = config["pair"]["target"], config["pair"]["draft"], config["metrics"]
    sampling = config["sampling"]
    return f"""---
library_name: dsl-train
tags: [speculative-decoding, dynamic-speculation-lookahead]
---

# Lookahead predictor for {target["id"]} with draft {draft["id"]}

A {metrics["onnx_bytes"] / 1000:.0f} kB classifier that decides, after every drafted token of speculative decoding,
whether drafting another one is worth its price. What is generated does not depend on it, only how fast.

| | target | draft |
|---|---|---|
| model | {target["id"]} | {draft["id"]} |
| architecture | {target.get("architecture")} | {draft.get("architecture")} |
| vocabulary | {target.get("vocab_size")} | {draft.get("vocab_size")} |

Trained on traces at temperature {_listed(sampling["temperatures"])}, top-k {_listed(sampling["top_k"])}, top-p
{_listed(sampling["top_p"])}{_drafting(config)}; at most {config["max_lookahead"]} drafts a round.

## How good

On {metrics["test"]["num_rows"]:,} decisions of {metrics["num_prompts"]["test"]} held-out prompts; the floor is a
logistic regression on the core features.

| | predictor | floor |
|---|---|---|
{_metric_rows(metrics)}

Replay of the held-out texts: tokens per target step where a draft costs c target steps.

| c | threshold | predictor | best static lookahead | gain |
|---|---|---|---|---|
{_replay_rows(metrics)}
{_temperature_section(metrics)}
## How to use it

```python
from dsl_train import generate

print(generate({target["id"]!r}, {draft["id"]!r}, "def main(", predictor="THIS_FOLDER").text)
```

Or with transformers, torch, numpy and onnxruntime alone, `target` and `draft` being loaded models:

```python
target.generate(**inputs, custom_generate="THIS_FOLDER", draft_model=draft, trust_remote_code=True)
```

Input: {len(config["schema"]["names"])} features, schema v{config["schema"]["version"]}
(`{config["schema"]["fingerprint"]}`): {", ".join(f"`{name}`" for name in config["schema"]["names"])}.
"""


def _drafting(config: Mapping[str, Any]) -> str:
    return ", of a draft that proposes its most likely token" if config.get("draft_sampling") == "greedy" else ""


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _metric_rows(metrics: Mapping[str, Any]) -> str:
    keys = {"auc": "AUC", "log_loss": "log loss", "brier": "Brier score", "ece": "calibration error"}
    rows = [
        f"| {label} | {_number(metrics['test'][key])} | {_number(metrics['floor'][key])} |"
        for key, label in keys.items()
    ]
    return "\n".join(rows)


def _replay_rows(metrics: Mapping[str, Any]) -> str:
    rows = [
        f"| {row['c']:g} | {row['threshold']:.3f} | {row['rate']:.3f} | {row['static_rate']:.3f} "
        f"(K = {row['static_lookahead']}) | {row['gain']:+.1%} |"
        for row in metrics["replay"]
    ]
    return "\n".join(rows)


def _temperature_section(metrics: Mapping[str, Any]) -> str:
    """Gain by temperature and price; empty where the traces have one temperature only."""
    rows = metrics["by_temperature"]
    if not rows:
        return ""
    costs = [row["c"] for row in rows[0]["replay"]]
    lines = [
        f"| {row['temperature']:g} | {_number(row['test']['auc'])} | {_number(row['test']['ece'])} | "
        + " | ".join(f"{at['gain']:+.1%}" for at in row["replay"])
        + " |"
        for row in rows
    ]
    head = "| temperature | AUC | calibration error | " + " | ".join(f"gain at c = {c:g}" for c in costs) + " |"
    intro = "By temperature, each against the static lookahead that was best at it:"
    return "\n".join(["", intro, "", head, "|---" * (3 + len(costs)) + "|", *lines, ""])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
