"""Cut prose prompts, the other domain of the transfer study: ``python -m dsl_train.reference.prose``.

Docstrings of the held-out modules, the language reference that Python carries for its own ``help``, and the licence it
comes with; neither model of the pair was trained on any of them. Writes ``data/prompts/prose_train.jsonl`` and
``prose_test.jsonl``, whose sources differ. The files are in the repository, because other Python versions have other
texts.
"""

import ast
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from dsl_train.base.files import write_text
from dsl_train.reference.corpus import HELD_OUT_TEST, HELD_OUT_TRAIN, held_out_files, standard_library

_PARAGRAPH = re.compile(r"(?:\A|(?<=\n\n))(?=[A-Z])")
_LINES = (3, 12)
_MIN_CHARS = 80
_SIZES = {"prose_train": 240, "prose_test": 96}
_PER_SOURCE = 3


def sources(modules: list[str], half: int) -> dict[str, str]:
    """Source -> text. `half` 0 or 1 takes every other topic of the language reference and half of the licence."""
    licence = (standard_library() / "LICENSE.txt").read_text("utf-8")
    middle = len(licence) // 2
    texts = {f"licence/{half}": licence[middle * half : middle * (half + 1)]}
    texts |= {f"reference/{name}": topics[name] for name in sorted(topics)[half::2]}
    for module, code in held_out_files(modules).items():
        texts[f"docstrings/{module}"] = "\n\n".join(_docstrings(code))
    return texts


def passages(source: str, text: str) -> Iterator[dict[str, str]]:
    """Some passages of 3 to 12 lines, each beginning with a paragraph; the same ones every time."""
    rng = random.Random(source)
    starts = [match.start() for match in _PARAGRAPH.finditer(text)]
    for start in sorted(rng.sample(starts, min(_PER_SOURCE, len(starts)))):
        passage = "".join(text[start:].splitlines(keepends=True)[: rng.randint(*_LINES)])
        if len(passage) >= _MIN_CHARS:
            yield {"source": source, "prompt": passage}


def _docstrings(code: str) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, as `inspect.getdoc` would show them."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text


def main() -> None:
    seen: set[str] = set()  # some topics share passages
    for half, (name, modules) in enumerate((("prose_train", HELD_OUT_TRAIN), ("prose_test", HELD_OUT_TEST))):
        rows = [row for source, text in sources(modules, half).items() for row in passages(source, text)]
        random.Random(name).shuffle(rows)
        rows = [row for row in rows[: _SIZES[name]] if row["prompt"] not in seen]
        seen |= {row["prompt"] for row in rows}
        write_text(Path("data/prompts") / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        print(f"data/prompts/{name}.jsonl: {len(rows)} prompts from {len({row['source'] for row in rows})} sources")


if __name__ == "__main__":
    main()
