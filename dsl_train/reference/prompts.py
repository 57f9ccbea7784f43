"""Cut prompts from the held-out modules: ``python -m dsl_train.reference.prompts``.

Writes ``data/prompts/heldout_train.jsonl`` (for the predictor) and ``heldout_test.jsonl`` (for benchmarks only). The
files are in the repository, because other Python versions have other texts.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from dsl_train.base.files import write_text
from dsl_train.reference.corpus import HELD_OUT_TEST, HELD_OUT_TRAIN, held_out_files

_DEFINITION = re.compile(r"^ {0,4}(?:def|class|async def) ", re.MULTILINE)
_LINES = (5, 24)
_PER_MODULE = {"heldout_train": 24, "heldout_test": 6}


def prompts_of(module: str, text: str, most: int) -> Iterator[dict[str, str]]:
    """Up to `most` passages of 5 to 24 lines, each beginning with a definition; the same ones every time."""
    rng = random.Random(module)
    starts = [match.start() for match in _DEFINITION.finditer(text)]
    for start in sorted(rng.sample(starts, min(most, len(starts)))):
        lines = text[start:].splitlines(keepends=True)[: rng.randint(*_LINES)]
        yield {"source": module, "prompt": "".join(lines)}


def main() -> None:
    for name, modules in (("heldout_train", HELD_OUT_TRAIN), ("heldout_test", HELD_OUT_TEST)):
        files = held_out_files(modules)
        rows = [row for module, text in files.items() for row in prompts_of(module, text, _PER_MODULE[name])]
        random.Random(name).shuffle(rows)  # the first few then come from many modules
        write_text(Path("data/prompts") / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        print(f"data/prompts/{name}.jsonl: {len(rows)} prompts from {len(files)} modules")


if __name__ == "__main__":
    main()
