"""dsl-bench: who runs when, what is compared with what, and every mode once."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_predictor import write_predictor

from dsl_train.base.records import DslError, GenerationResult
from dsl_train.base.sampling import Sampling
from dsl_train.bench import live
from dsl_train.bench.config import BenchConfig
from dsl_train.bench.hf import hf_generate
from dsl_train.bench.live import run_live
from dsl_train.bench.replay import by_prompt, tabulate
from dsl_train.cli.bench import main
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.shards import collect
from dsl_train.pair.loading import load_pair
from dsl_train.replay.rounds import ReplayResult

PROMPTS = ("def f(a, b):", "class Name:", "for i in (1, 2):", "x = [3, 4]")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in PROMPTS))
    return str(path)


@pytest.fixture(scope="module")
def predictor(pair_folders, tmp_path_factory) -> str:
    pair = load_pair(pair_folders.target, pair_folders.draft, "float32", "cpu")
    return str(write_predictor(tmp_path_factory.mktemp("predictor"), pair))


@pytest.fixture
def options(pair_folders, prompts) -> dict:
    models = {"target": pair_folders.target, "draft": pair_folders.draft, "device": "cpu", "dtype": "float32"}
    return {**models, "prompts": prompts, "num_prompts": 3, "max_new_tokens": 12, "repeats": 2}


def arguments(options: dict, *more: str) -> list[str]:
    return [*(word for name, value in options.items() for word in (f"--{name}", str(value))), *more]


def generated(token_ids: str, seconds: float = 1.0) -> GenerationResult:
    return GenerationResult((1,), tuple(map(ord, token_ids)), "length", (), seconds)


def test_every_contender_gets_every_prompt_in_every_repeat_and_begins_about_equally_often():
    names, num_prompts, repeats = ["a", "b", "c"], 4, 3
    turns = list(live.schedule(names, num_prompts, repeats))
    assert len(turns) == len(set(turns)) == len(names) * num_prompts * repeats
    assert all({turns[i + j][1:] for j in range(3)} == {turns[i][1:]} for i in range(0, len(turns), 3))
    assert set(Counter(name for name, *_ in turns[::3]).values()) == {4}


def test_a_prompt_counts_with_its_median_pace_so_that_one_hiccup_does_no_harm():
    pooled = live.pool([[generated("abcd", 2.0), generated("abcd", 100.0), generated("abcd", 2.2)]])
    assert pooled.tokens.tolist() == [4.0]
    np.testing.assert_allclose(pooled.cost, [2.2])


def test_texts_of_different_length_keep_their_pace():
    pooled = live.pool([[generated("ab", 1.0), generated("abcdef", 3.0)]])
    assert (pooled.tokens.tolist(), pooled.cost.tolist()) == ([4.0], [2.0])


def test_the_first_difference_of_a_text_is_reported_once_for_policy_and_prompt():
    results = {
        "autoregressive": [[generated("abc")], [generated("xyz")]],
        "same": [[generated("abc")], [generated("xyz")]],
        "wrong": [[generated("abc"), generated("aXc"), generated("aYc")], [generated("xy")]],
    }
    first, second = live.compare(results, ["p0", "p1"])
    assert first == live.Mismatch("wrong", "p0", 1, ord("b"), ord("X"))
    assert second == live.Mismatch("wrong", "p1", 2, ord("z"), None)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("grouped") / "prompts.jsonl"
    rows = [{"prompt": text + str(n), "kind": kind} for kind, text in zip("aab", PROMPTS, strict=False) for n in (1, 2)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_groups_hold_the_first_prompts_of_each_and_add_up_to_the_whole(options, grouped, capsys, tmp_path):
    config = {**options, "prompts": grouped, "num_prompts": 2, "by": "kind", "repeats": 1, "output": tmp_path / "bench"}
    assert main(arguments(config, "--policies", "static:1", "static:3", "--json")) == 0
    document = capsys.readouterr().out.split("by group: static:3")[1]
    assert "vs best static there" in document
    result = json.loads(document.splitlines()[-1])
    assert [(group["name"], group["num_prompts"]) for group in result["groups"]] == [("a", 2), ("b", 2)]
    for number, policy in enumerate(result["policies"]):
        parts = [group["policies"][number]["stats"]["num_draft_tokens"] for group in result["groups"]]
        assert sum(parts) == policy["stats"]["num_draft_tokens"]
    assert (tmp_path / "bench" / "groups.png").stat().st_size > 5000


def test_the_static_lookahead_to_compare_with_is_chosen_on_other_prompts(options, grouped, capsys, tmp_path):
    config = {**options, "prompts": grouped, "num_prompts": 2, "repeats": 1, "output": tmp_path / "bench"}
    config["tune_prompts"] = options["prompts"]
    assert main(arguments(config, "--policies", "static:1", "static:3")) == 0
    result = json.loads((tmp_path / "bench" / "result.json").read_text())
    bases = {name for policy in result["policies"] for name in policy["relative_to"]}
    assert bases == {"autoregressive", result["best_static"], result["best_static_here"]}
    assert f"vs {result['best_static']}" in capsys.readouterr().out


def test_prompts_to_tune_on_must_be_others(options, capsys):
    assert main(arguments({**options, "tune_prompts": options["prompts"]}, "--policies", "static:1")) == 1
    assert "a lookahead chosen on the prompts it is judged by looks better than it is" in capsys.readouterr().err


def test_a_column_to_group_by_that_is_not_there_is_named(options, capsys):
    assert main(arguments({**options, "by": "kind"}, "--policies", "static:1")) == 1
    assert "no column 'kind' to group by; the columns are prompt" in capsys.readouterr().err


def test_replay_pools_the_texts_of_one_prompt():
    result = replayed(tokens=[10, 20, 30], sequence=[0, 0, 1, 2, 2], num_drafted=[2, 0, 4, 1, 1], ids=("p", "q", "p"))
    rates = by_prompt(result, 0.5)
    assert rates.tokens.tolist() == [40, 20]
    assert rates.cost.tolist() == [2 + 1.0 + 2 + 1.0, 1 + 2.0]


def test_a_replay_table_compares_with_the_best_static_lookahead_at_each_cost():
    ids = ("p", "q")
    short = replayed(tokens=[8, 8], sequence=[0, 0, 0, 0, 1, 1, 1, 1], num_drafted=[1] * 8, ids=ids)
    long = replayed(tokens=[8, 8], sequence=[0, 0, 1, 1], num_drafted=[6] * 4, ids=ids)
    table = tabulate({"static:1": [short] * 2, "static:6": [long] * 2, "heuristic": [long] * 2}, [0.1, 0.5])
    assert table.best_static == ("static:6", "static:1")
    rule = table.rows[2]
    assert rule.rates[0].estimate == pytest.approx(8 / 3.2)
    assert rule.vs_best_static[0].estimate == pytest.approx(1.0)
    assert rule.vs_best_static[1].estimate == pytest.approx((8 / 8) / (8 / 6))
    assert rule.mean_lookahead == (6.0, 6.0)


def replayed(tokens: list[int], sequence: list[int], num_drafted: list[int], ids: tuple[str, ...]) -> ReplayResult:
    drafted = np.array(num_drafted)
    rounds = np.array(sequence)
    return ReplayResult(rounds, rounds, drafted, drafted, drafted < 0, np.array(tokens), ids)


def test_live_compares_all_contenders_and_finds_the_targets_own_tokens(options, predictor):
    names = ["static:2", "static:0", "heuristic", "confidence", "learned", "transformers", "transformers-assisted"]
    result = run_live(BenchConfig(**options, policies=names, predictor=predictor))
    assert [policy.name for policy in result.policies] == ["autoregressive", *names]
    assert result.mismatches == ()
    assert not result.failed
    assert result.best_static in ("static:0", "static:2")
    assert result["static:0"].stats.num_draft_tokens == 0
    assert result["static:2"].stats.drafted_by_position[0] > 0
    assert set(result["learned"].relative_to) == {"autoregressive", result.best_static, *names[-2:]}
    assert "confidence threshold 0.4" in result["transformers-assisted"].note
    assert 0.5 <= result.threshold <= 1.0  # the table says 0.5; a measured jump of verification raises it


def test_a_policy_that_changed_the_text_is_listed_and_fails_the_command(options, monkeypatch, capsys, tmp_path):
    honest = live.hf_generate

    def dishonest(*args, **kwargs):
        generate = honest(*args, **kwargs)
        return lambda prompt, seed: generated("no", 1.0) if len(prompt) == len(PROMPTS[1]) else generate(prompt, seed)

    monkeypatch.setattr(live, "hf_generate", dishonest)
    output = tmp_path / "out"
    code = main(arguments(options, "--policies", "static:2", "transformers", "--json", "--output", str(output)))
    printed = capsys.readouterr().out.splitlines()
    document = json.loads(printed[-1])
    assert code == 1
    assert [m["policy"] for m in document["mismatches"]] == ["transformers"]
    assert any(line.startswith("DIFFERENT transformers") for line in printed)
    assert json.loads((output / "result.json").read_text())["mismatches"] == document["mismatches"]


def test_sampling_is_timed_without_comparing_tokens(options, capsys):
    options |= {"temperature": 0.8, "top_k": 20}
    assert main(arguments(options, "--policies", "static:2", "transformers-assisted", "--json")) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["greedy"] is False
    assert document["mismatches"] == []


def test_transformers_runs_at_its_own_defaults_and_leaves_the_configurations_alone(pair_folders):
    pair = load_pair(pair_folders.target, pair_folders.draft, "float32", "cpu")
    kept = pair.draft.generation_config
    kept.num_assistant_tokens, kept.assistant_confidence_threshold = 1, 0.0
    seen = []
    stock = pair.draft.generate

    def spy(*args, **kwargs):
        seen.append((pair.draft.generation_config.num_assistant_tokens, kwargs["generation_config"]))
        return stock(*args, **kwargs)

    pair.draft.generate = spy
    hf_generate(pair, Sampling(), max_new_tokens=30, assistant=pair.draft)((5, 6, 7), 0)
    assert {count for count, _ in seen} == {None}
    assert seen[0][1].assistant_confidence_threshold is not None
    assert pair.draft.generation_config is kept


def test_replay_prices_policies_on_traces(options, predictor, tmp_path, capsys):
    traces = tmp_path / "traces"
    common = {name: options[name] for name in ("target", "draft", "prompts", "max_new_tokens", "device")}
    collect(CollectConfig(**common, output=str(traces)))
    words = ["--mode", "replay", "--traces", str(traces), "--predictor", predictor, "--c", "0.1", "0.3"]
    output = tmp_path / "out"
    policies = ["--policies", "autoregressive", "static:1", "static:3", "confidence", "learned"]
    assert main([*words, *policies, "--output", str(output), "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["costs"] == [0.1, 0.3]
    rates = {row["policy"]: [rate["estimate"] for rate in row["rates"]] for row in document["rows"]}
    assert list(rates) == ["static:1", "static:3", "confidence", "learned", "oracle", "oracle+"]
    assert all(rates["oracle"][i] >= max(values[i] for values in rates.values()) for i in range(2))
    assert {path.name for path in output.iterdir()} == {"config.json", "result.json", "rates.png"}


def test_profile_prints_and_writes_the_costs(options, predictor, tmp_path, capsys):
    words = arguments({name: options[name] for name in ("target", "draft", "device")}, "--predictor", predictor)
    assert main(["--mode", "profile", *words, "--output", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr().out
    assert "features and predictor" in printed
    assert json.loads(printed.splitlines()[-1])["predictor"] > 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["target_step"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": ["learned"]}, "has no predictor"),
        ({"policies": ["statik:2"]}, "did you mean 'static'"),
        ({"policies": ["static:2"], "prompts": "/nowhere/prompts.jsonl"}, "does not exist"),
        ({"policies": ["learned"], "predictor": "/nowhere"}, "/nowhere"),
    ],
)
def test_bad_input_is_one_clear_message_before_anything_is_timed(options, changes, message):
    with pytest.raises(DslError, match=message):
        run_live(BenchConfig(**{**options, **changes}))


def test_a_prompt_beyond_the_context_is_named(options, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("a" * 300)
    with pytest.raises(DslError, match=r"300 tokens .* 1 to 256"):
        run_live(BenchConfig(**options | {"prompts": str(path)}, policies=["static:2"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "replay"], "--mode replay needs --traces"),
        (["--mode", "profile", "--target", "t"], "--mode profile needs --draft"),
        (["--target", "t", "--draft", "d", "--prompts", "p", "--repeats", "0"], "--repeats must be at least 1, not 0"),
        (["--target", "t", "--draft", "d", "--prompts", "p", "--top_p", "2"], "top_p must be in"),
    ],
)
def test_impossible_settings_are_usage_errors(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
