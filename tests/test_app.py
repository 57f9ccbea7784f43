"""What all commands share: flags spelled as people write them, exit codes, the JSON line."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from dsl_train.base.records import DslError
from dsl_train.cli.app import run, spell_out


@dataclass(frozen=True)
class Config:
    """Do nothing."""

    inputs: list[Path]
    """What goes in."""
    widths: tuple[int, ...] = (4,)
    """How wide."""
    limit: int | None = None
    """How many."""
    fail: str = ""
    """How to fail."""
    quick: bool = False
    """Whether to hurry."""

    def __post_init__(self) -> None:
        if self.limit == 0:
            raise ValueError("limit is 0 but must be positive")


def execute(config: Config) -> Config:
    if config.fail == "dsl":
        raise DslError("the thing is 3 but should be 4; do the next step")
    if config.fail == "os":
        raise PermissionError(13, "Permission denied", "out")
    if config.fail == "interrupt":
        raise KeyboardInterrupt
    return config


def call(*argv: str) -> int:
    return run(Config, execute, lambda _: print("a table"), lambda config: {"inputs": config.inputs}, argv)


def test_lists_and_switches_are_written_the_usual_way():
    argv = ["--inputs", "a", "2024", "--quick", "--widths", "3", "5", "--limit", "2"]
    expected = ['--inputs=["a", "2024"]', "--quick=true", "--widths=[3, 5]", "--limit", "2"]
    assert spell_out(Config, argv) == expected


def test_json_is_the_last_line_behind_the_table(capsys):
    assert call("--inputs", "a", "b", "--json") == 0
    table, document = capsys.readouterr().out.splitlines()
    assert table == "a table"
    assert json.loads(document) == {"inputs": ["a", "b"]}


@pytest.mark.parametrize(
    ("fail", "code", "message"),
    [
        ("dsl", 1, "error: the thing is 3 but should be 4; do the next step\n"),
        ("os", 1, "error: [Errno 13] Permission denied: 'out'\n"),
        ("interrupt", 130, "interrupted\n"),
    ],
)
def test_a_failure_is_one_line_and_its_exit_code(fail, code, message, capsys):
    assert call("--inputs", "a", "--fail", fail) == code
    assert capsys.readouterr().err == message


def test_debug_shows_the_traceback():
    with pytest.raises(DslError):
        call("--inputs", "a", "--fail", "dsl", "--debug")


@pytest.mark.parametrize("argv", [[], ["--inputs", "a", "--limit", "0"], ["--inputs", "a", "--unknown", "1"]])
def test_wrong_usage_is_exit_2(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(*argv)
    assert stopped.value.code == 2


def test_flags_win_over_the_file_and_the_attribute_docstrings_are_the_help(tmp_path, capsys):
    (tmp_path / "file.yaml").write_text("inputs: [x]\nlimit: 7\n")
    seen: list[Config] = []
    argv = ["--config", str(tmp_path / "file.yaml"), "--limit", "8"]
    assert run(Config, execute, seen.append, lambda _: {}, argv) == 0
    assert seen == [Config([Path("x")], limit=8)]
    with pytest.raises(SystemExit) as stopped:
        call("--help")
    assert stopped.value.code == 0
    assert "Whether to hurry." in capsys.readouterr().out
