"""`target.generate(..., custom_generate="<draft>/dsl", trust_remote_code=True)`: the folder without the package."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer
from tiny_predictor import write_predictor
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import get_imports, get_relative_import_files
from transformers.generation.streamers import BaseStreamer

from dsl_train.hf.bundle import FOLDER, REQUIREMENTS, bundle, bundled_modules, write_bundle
from dsl_train.loading import load_pair
from dsl_train.predictor.artifact import ship
from dsl_train.predictor.runtime import CARD

PROMPT = torch.tensor([[50, 27, 63, 6, 17]])
#: Everything that pyproject.toml asks for and serving does without; rich and jinja2 come with other packages.
ABSENT = (
    "dsl_train lightning datasets pyarrow sklearn onnx onnxscript tensorboard jsonargparse matplotlib jinja2 rich ray"
)

ALONE = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.split(".")[0] in {ABSENT.split()} else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

target_folder, draft_folder = sys.argv[1:]
target = AutoModelForCausalLM.from_pretrained(target_folder)
tokenizer = AutoTokenizer.from_pretrained(target_folder)
inputs, options = torch.tensor({PROMPT.tolist()}), {{"max_new_tokens": 30, "do_sample": False}}
shipped = {{"custom_generate": draft_folder + "/dsl", "trust_remote_code": True}}
print(target.generate(inputs, **options).tolist())
print(target.generate(inputs, **options, **shipped).tolist())
draft = AutoModelForCausalLM.from_pretrained(draft_folder)
print(target.generate(inputs, **options, **shipped, draft_model=draft, policy="static:4").tolist())
torch.manual_seed(0)
print(target.generate(inputs, max_new_tokens=30, do_sample=True, top_k=8, **shipped).shape[0])
"""


@pytest.fixture(scope="module")
def shipped(pair_folders, tmp_path_factory):
    """The draft's folder with a predictor and the code that runs it."""
    folder = tmp_path_factory.mktemp("shipped") / "draft"
    shutil.copytree(pair_folders.draft, folder)
    artifact = tmp_path_factory.mktemp("artifact")
    write_predictor(artifact, load_pair(pair_folders.target, str(folder), "float32", "cpu"))
    (artifact / CARD).write_text("a card")
    ship(artifact, folder)
    return folder


@pytest.fixture
def target(pair_folders):
    return AutoModelForCausalLM.from_pretrained(pair_folders.target)


def generate(target, folder, **options):
    options = {"max_new_tokens": 30, "do_sample": False, **options}
    return target.generate(PROMPT, custom_generate=str(folder), trust_remote_code=True, **options)


def test_the_folder_generates_the_targets_text_where_nothing_else_is_installed(pair_folders, shipped, tmp_path):
    home = {"HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ALONE, pair_folders.target, str(shipped)]
    done = subprocess.run(command, env=home, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone, ours, fixed, num_sampled = done.stdout.splitlines()
    assert alone == ours == fixed
    assert num_sampled == "1"


def test_the_bundle_is_the_packages_own_code_but_for_imports():
    package = Path(__file__).parent.parent / "dsl_train"
    files = bundle()
    for module in bundled_modules():
        name = "generate" if module == "hf.shipped" else module.replace(".", "_")
        original = package.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8")
        kept = [line for line in original.splitlines() if "from dsl_train" not in line]
        copied = [line for line in files[f"{name}.py"].splitlines() if not re.match(r" *from \.", line)]
        if name == "generate":
            copied = [line for line in copied if line != "The files beside it:"]
            kept, copied = [line for line in kept if line], [line for line in copied if line]
        assert copied == kept, name


def test_the_bundle_serves_only(tmp_path):
    """No training, no traces, no commands; what it imports is what its requirements name, and comes with those."""
    assert {module.split(".")[0] for module in bundled_modules()}.isdisjoint(
        {"traces", "decisions", "collect", "bench", "report", "cli", "reference", "evidence", "api", "batch_engine"}
    )
    folder = write_bundle(tmp_path)
    outside = {name for path in folder.glob("*.py") for name in get_imports(path)} - set(sys.stdlib_module_names)
    required = {re.split(r"\W", line)[0] for line in REQUIREMENTS}
    assert outside <= required | {"safetensors", "huggingface_hub"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 250_000


def test_the_reference_draft_ships_the_code_of_today():
    artifact = Path(__file__).parent.parent / "checkpoints" / "reference" / "draft" / "dsl"
    found = {file.name: file.read_text("utf-8") for file in (artifact / FOLDER).glob("*.*")}
    stale = sorted(name for name in found.keys() | bundle().keys() if found.get(name) != bundle().get(name))
    assert not stale, f"{stale} differ from the package; run dsl_train.hf.bundle.write_bundle(Path({str(artifact)!r}))"


def test_transformers_finds_every_file_of_the_bundle(tmp_path):
    folder = write_bundle(tmp_path)
    found = {Path(path).name for path in get_relative_import_files(folder / "generate.py")}
    assert found | {"generate.py"} == {path.name for path in folder.glob("*.py")}


def test_writing_again_removes_modules_of_an_earlier_build(tmp_path):
    folder = write_bundle(tmp_path)
    (folder / "dropped.py").write_text("")
    write_bundle(tmp_path)
    assert not (folder / "dropped.py").exists()


def test_options_reach_the_loop_from_the_folder(target, shipped):
    class Recorder(BaseStreamer):
        pieces, ended = (), False

        def put(self, value):
            self.pieces += (*value.flatten().tolist(),)

        def end(self):
            self.ended = True

    text, streamer, tokenizer = target.generate(PROMPT, max_new_tokens=30), Recorder(), make_tokenizer()
    stop = tokenizer.decode(text[0, -9:-6].tolist())
    options = {"stop_strings": stop, "tokenizer": tokenizer, "repetition_penalty": 1.01}
    found = generate(target, shipped / "dsl", streamer=streamer, policy="static:7", **options)
    assert found.tolist() == target.generate(PROMPT, max_new_tokens=30, **options).tolist()
    assert streamer.pieces == tuple(found[0].tolist())
    assert streamer.ended
    settings = target.generation_config.__class__(max_new_tokens=30, stop_strings=[stop])
    found = target.generate(
        PROMPT, settings, custom_generate=str(shipped / "dsl"), trust_remote_code=True, tokenizer=tokenizer
    )
    assert found.tolist() == target.generate(PROMPT, settings, tokenizer=tokenizer).tolist()
    assert settings.stop_strings == [stop]


def test_what_the_folder_cannot_honour_is_refused_by_name(target, shipped, tmp_path):
    with pytest.raises(Exception, match=r"pass assistant_model=dsl_train\.attach"):
        generate(target, shipped / "dsl", tokenizer=make_tokenizer(), assistant_tokenizer=make_tokenizer())
    shutil.copytree(shipped / "dsl", tmp_path / "elsewhere")
    with pytest.raises(Exception, match=r"does not lie in a draft model's folder; pass draft_model="):
        generate(target, tmp_path / "elsewhere")
    with pytest.raises(Exception, match="generation mode 'beam_search'"):
        generate(target, shipped / "dsl", num_beams=2)
    draft = AutoModelForCausalLM.from_pretrained(shipped)
    assert generate(target, tmp_path / "elsewhere", assistant_model=draft).tolist() == (
        target.generate(PROMPT, max_new_tokens=30).tolist()
    )
