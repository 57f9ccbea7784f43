"""Every cell of docs/families.md."""

import pytest

from families.cells import COLUMNS
from families.table import DOCUMENT, outcome, read_table
from families.zoo import ALL


@pytest.fixture(scope="module")
def documented() -> dict[tuple[str, str], str]:
    return read_table(DOCUMENT.read_text("utf-8"))


@pytest.mark.filterwarnings("ignore")  # of transformers' models in construction
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("family", ALL, ids=lambda family: family.title)
def test_a_family_does_what_its_cell_says(family, column, documented):
    assert outcome(family, column) == documented[family.title, column]


def test_the_table_has_no_cell_that_is_not_tested(documented):
    assert documented.keys() == {(family.title, column) for family in ALL for column in COLUMNS}
