"""`target.generate(..., custom_generate="<draft>/dsl", trust_remote_code=True)`: the shipped folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from absent import WITHOUT
from conftest import make_tokenizer
from tiny_predictor import write_predictor
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import get_imports
from transformers.generation.streamers import BaseStreamer

from dsl_train.pair.loading import load_pair
from dsl_train.predictor.runtime import CARD
from dsl_train.train.artifact import LOADER, REQUIREMENTS, ship, write_loader

PROMPT = torch.tensor([[50, 27, 63, 6, 17]])
#: Everything that pyproject.toml asks for and serving does without.
ABSENT = "lightning datasets pyarrow sklearn onnx onnxscript tensorboard jsonargparse matplotlib jinja2 rich ray"

ALONE = f"""
ABSENT = "{ABSENT}"
{WITHOUT}
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


WITHOUT_THE_PACKAGE = f"""
ABSENT = "dsl_train"
{WITHOUT}
import torch
from transformers import AutoModelForCausalLM

target = AutoModelForCausalLM.from_pretrained(sys.argv[1])
target.generate(torch.tensor([[5]]), custom_generate=sys.argv[2] + "/dsl", trust_remote_code=True)
"""


def home(folder):
    """An environment whose caches lie in the folder."""
    caches = {"HF_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    return {**caches, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


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


def test_the_folder_generates_the_targets_text_without_the_libraries_of_training(pair_folders, shipped, tmp_path):
    command = [sys.executable, "-c", ALONE, pair_folders.target, str(shipped)]
    done = subprocess.run(command, env=home(tmp_path), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone, ours, fixed, num_sampled = done.stdout.splitlines()
    assert alone == ours == fixed
    assert num_sampled == "1"


def test_the_loader_is_one_file_that_names_what_it_needs(tmp_path):
    (tmp_path / LOADER).mkdir()
    (tmp_path / LOADER / "dropped.py").write_text("of an earlier build")
    write_loader(tmp_path)
    assert sorted(path.name for path in (tmp_path / LOADER).iterdir()) == ["generate.py", "requirements.txt"]
    assert get_imports(tmp_path / LOADER / "generate.py") == ["dsl_train"]
    assert (tmp_path / LOADER / "requirements.txt").read_text() == REQUIREMENTS


def test_without_the_package_the_loader_says_what_to_install(pair_folders, shipped, tmp_path):
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, pair_folders.target, str(shipped)]
    done = subprocess.run(command, env=home(tmp_path), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install dsl_train" in done.stderr


def test_the_reference_draft_ships_the_loader_of_today(tmp_path):
    folder = Path(__file__).parent.parent / "checkpoints" / "reference" / "draft" / "dsl"
    write_loader(tmp_path)
    shipped, today = (
        sorted((path.name, path.read_text()) for path in (of / LOADER).iterdir()) for of in (folder, tmp_path)
    )
    assert shipped == today


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
