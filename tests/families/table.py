"""docs/families.md: written from what the cells do (`benchmarks/families.py`), read back by the tests."""

from collections.abc import Mapping
from pathlib import Path

from dsl_train.base.records import DslError
from families.cells import COLUMNS
from families.zoo import ALL, Family

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "families.md"
_HEAD = """# Model families

Tiny models built from the real configuration classes of transformers 5.23: two layers, random weights, float32. `yes`
is a test that passed (`tests/families/cells.py` says what each column compares), a number a refusal with the sentence
below. Texts are longer than every window. Written by `python benchmarks/families.py`; `make test` runs every cell
again and compares.

"""


def outcome(family: Family, column: str) -> str:
    """`yes`, or the sentence of the refusal; anything else is raised."""
    try:
        COLUMNS[column](family)
    except DslError as refusal:
        return str(refusal)
    return "yes"


def write_table(outcomes: Mapping[tuple[str, str], str]) -> str:
    """The document, from outcomes by family title and column."""
    sentences = list(dict.fromkeys(text for text in outcomes.values() if text != "yes"))
    cells = {key: "yes" if text == "yes" else f"[{sentences.index(text) + 1}]" for key, text in outcomes.items()}
    rows = [["family", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    rows += [[family.title, *(cells[family.title, column] for column in COLUMNS)] for family in ALL]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    notes = "".join(f"{number}. {sentence}\n" for number, sentence in enumerate(sentences, 1))
    return f"{_HEAD}{table}\n{notes}"


def read_table(document: str) -> dict[tuple[str, str], str]:
    """The outcomes that a document was written from."""
    lines = document.splitlines()
    sentences = dict(line.split(". ", 1) for line in lines if line[:1].isdigit())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    columns = rows[0][1:]
    return {
        (title, column): sentences[cell[1:-1]] if cell.startswith("[") else cell
        for title, *cells in rows[2:]
        for column, cell in zip(columns, cells, strict=True)
    }
