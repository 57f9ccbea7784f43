"""What every folder shares: first lines of errors, digests and seals."""

import json

import pytest

from dsl_train.base import files
from dsl_train.base.records import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError(""), "ValueError"),
        (OSError(" \n "), "OSError"),
        (KeyError("\nlate"), "'\\nlate'"),
        (RuntimeError("x" * 500), "x" * 200),
    ],
)
def test_an_error_has_a_first_line_whatever_it_says(error, line):
    assert first_line(error) == line


def test_a_sealed_document_tells_whether_it_was_changed(tmp_path):
    path = tmp_path / "document.json"
    files.write_json(path, files.sealed({"b": (1, 2.5), "a": {10: "ten", 9: "nine"}, "text": "größer"}))
    document = json.loads(path.read_text("utf-8"))
    assert files.broken_seal(document) is None
    assert files.broken_seal({**document, "b": [1, 2.6]})
    assert files.broken_seal({**document, "new": 1})
    assert files.broken_seal({"never": "sealed"}) is None


def test_a_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "empty").touch()
    assert files.sha256(tmp_path / "empty").startswith("e3b0c44298fc1c14")
