"""The wheel, installed beside the checkout: every file of the package is in it, and the commands run from it."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = ("dsl-collect", "dsl-train", "dsl-generate", "dsl-bench")


def run(*words, **environment):
    """Nothing of this checkout is on the module path, and no package index is asked."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env = {**kept, "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, cwd=environment.get("CWD"))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, which is deleted: the wheel must do without it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "dsl_train", source / "dsl_train", ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--quiet")
    run("-m", "pip", "wheel", str(source), *options, "--wheel-dir", str(folder))
    shutil.rmtree(source)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel):
    """The folder that the wheel was installed into, with its commands in `bin`."""
    site = wheel.parent / "site"
    run("-m", "pip", "install", "--no-deps", "--quiet", "--target", str(site), str(wheel))
    return site


def run_command(installed, name, *words):
    return run(str(installed / "bin" / name), *words, PYTHONPATH=str(installed), CWD=str(installed))


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    files = {path for path in (ROOT / "dsl_train").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_the_wheel_explains_itself(installed, name):
    assert f"usage: {name}" in run_command(installed, name, "--help")


def test_a_text_is_generated_from_the_wheel(installed, pair_folders):
    where = run("-c", "import dsl_train; print(dsl_train.__file__)", PYTHONPATH=str(installed), CWD=str(installed))
    assert Path(where.strip()).parent == installed / "dsl_train"
    words = ("--target", pair_folders.target, "--draft", pair_folders.draft, "--policy", "static:2", "--prompt", "ab")
    printed = run_command(installed, "dsl-generate", *words, "--max_new_tokens", "4", "--device", "cpu", "--json")
    (generation,) = json.loads(printed.splitlines()[-1])["generations"]
    assert 1 <= generation["num_tokens"] <= 4
