"""What the four commands share: a parser built from a dataclass, exit codes, and the JSON line at the end.

Exit 0 done, 1 failed (one line on stderr), 2 usage, 3 done but some input was put aside (dsl-collect), 130 interrupted.
Knows no command in particular.
"""

import contextlib
import dataclasses
import json
import sys
import typing
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from dsl_train.base.records import DslError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Config = TypeVar("Config")
Result = TypeVar("Result")


def run(
    config_type: type[Config],
    execute: Callable[[Config], Result],
    show: Callable[[Result], None],
    to_json: Callable[[Result], dict[str, Any]],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    exit_code: Callable[[Result], int] = lambda _: 0,
) -> int:
    """Parse `argv` (default: the process's) into a `config_type`, execute, show; with --json print one JSON line last.

    The dataclass's attribute docstrings are the help. A ValueError from its constructor is a usage error (exit 2);
    DslError, OSError and a library that is not installed become one line on stderr and 1, unless --debug asks for the
    traceback.
    """
    if find_spec("jsonargparse") is None:
        print(f"error: {_not_installed('jsonargparse')}", file=sys.stderr)
        return 1
    parser = build_parser(config_type, prog)
    words = spell_out(config_type, sys.argv[1:] if argv is None else argv)
    try:
        args = parser.parse_args(words)
    except UnicodeDecodeError as error:  # the only one that jsonargparse does not turn into a usage error
        parser.error(f"--config is not a file of UTF-8 text: {error}")
    try:
        values = {field.name: args[field.name] for field in dataclasses.fields(config_type)}  # type: ignore[arg-type]
        try:
            config = config_type(**values)
        except ValueError as error:
            parser.error(str(error))
        from dsl_train.pair.hub import hide_loading_bars

        hide_loading_bars()
        result = execute(config)
        show(result)
        if args.json:
            print(json.dumps(to_json(result), default=str), flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (DslError, OSError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if args.debug or not error.name or error.name.startswith("dsl_train"):
            raise
        print(f"error: {_not_installed(error.name.split('.')[0])}", file=sys.stderr)
        return 1
    return exit_code(result)


def _not_installed(library: str) -> str:
    return f"this command needs {library}, which is not installed; run pip install dsl-train with its dependencies"


def build_parser(config_type: type, prog: str | None = None) -> "ArgumentParser":
    """--config, --print_config, one option per field, --json and --debug."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=(config_type.__doc__ or "").strip())
    parser.add_argument("--config", action="config", help="YAML file with any of the options below; flags win.")
    parser.add_class_arguments(config_type, None)
    parser.add_argument("--json", action="store_true", help="Print one JSON document as the last line of stdout.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of a failure.")
    return parser


def spell_out(config_type: type, argv: Sequence[str]) -> list[str]:
    """`--flag` of a bool field becomes `--flag=true`, `--names a b` of a list or tuple field `--names=["a", "b"]`."""
    hints = typing.get_type_hints(config_type)
    spelled: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, hint = word.removeprefix("--"), hints.get(word.removeprefix("--"))
        following = _take_values(words) if word.startswith("--") and hint is not None else []
        if not following and hint is bool:
            spelled.append(f"--{name}=true")
        elif following and not following[0].startswith("[") and (item := _item_type(hint)) is not None:
            spelled.append(f"--{name}={json.dumps([_number(value, item) for value in following])}")
        else:
            spelled += [word, *following]
    return spelled


def _take_values(words: list[str]) -> list[str]:
    values = []
    while words and not words[0].startswith("--"):
        values.append(words.pop(0))
    return values


def _item_type(hint: Any) -> Any:
    """What a list or tuple type (or None) holds; None for any other type."""
    options = (hint, *typing.get_args(hint))
    return next((typing.get_args(o)[0] for o in options if typing.get_origin(o) in (list, tuple)), None)


def _number(text: str, item: Any) -> str | int | float:
    for kind in (int, float):
        if item in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)
    return text
