"""Pairs that do not fit together, or cannot be loaded, are named."""

import shutil

import pytest
import torch
from conftest import make_model, make_tokenizer

from dsl_train.base.records import DslError
from dsl_train.pair import source
from dsl_train.pair.identity import describe_model
from dsl_train.pair.loading import identify, load_pair


@pytest.fixture
def copies(pair_folders, tmp_path):
    """Target and draft folders that a test may spoil."""
    return [shutil.copytree(getattr(pair_folders, name), tmp_path / name) for name in ("target", "draft")]


def test_a_pair_is_loaded_in_eval_mode_and_described(pair_folders):
    pair = load_pair(pair_folders.target, pair_folders.draft, device="cpu")
    assert not pair.target.training
    assert pair.target.dtype == torch.float32
    assert pair.eos_token_ids == {0}
    described = pair.describe()
    assert described["target"]["vocab_size"] == 64
    assert described["target"]["config_hash"] == described["draft"]["config_hash"]
    assert described["target"]["revision"] != described["draft"]["revision"]


def test_the_identity_does_not_depend_on_folder_or_precision(pair_folders, copies):
    one = load_pair(pair_folders.target, pair_folders.draft, dtype="bfloat16").target_identity
    other = load_pair(str(copies[0]), str(copies[1]), dtype="float32").target_identity
    assert (one.revision, one.config_hash) == (other.revision, other.config_hash)
    assert (one.dtype, other.dtype) == ("bfloat16", "float32")


def test_a_missing_folder_and_one_without_a_model_are_named(pair_folders, tmp_path):
    with pytest.raises(DslError, match=r"draft folder .*nowhere does not exist"):
        load_pair(pair_folders.target, str(tmp_path / "nowhere"))
    with pytest.raises(DslError, match=r"target folder .* has no config.json"):
        load_pair(str(tmp_path), pair_folders.draft)


def test_truncated_weights_are_named(copies):
    file = copies[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DslError, match=r"draft .* has a damaged weights file .*download or save it again"):
        load_pair(str(copies[0]), str(copies[1]))


def test_a_missing_tokenizer_is_named(copies):
    for file in copies[0].glob("tokenizer*"):
        file.unlink()
    with pytest.raises(DslError, match=r"target is not a folder with a tokenizer .*save_pretrained"):
        load_pair(str(copies[0]), str(copies[1]))


def test_different_vocabularies_are_named_with_both_sizes_and_the_first_difference(copies):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(copies[1])
    with pytest.raises(DslError, match=r"different vocabularies: 64 and 65 tokens, id 64 is None and 'more'"):
        load_pair(str(copies[0]), str(copies[1]))


def test_too_few_logits_for_the_vocabulary_are_named(copies):
    make_model(0, vocab_size=60).save_pretrained(copies[1])
    with pytest.raises(DslError, match=r"different vocabularies: 64 and 60 logits for 64 tokens"):
        load_pair(str(copies[0]), str(copies[1]))


def test_a_vocabulary_padded_differently_is_cut_to_one_width(copies):
    make_model(0, vocab_size=80).save_pretrained(copies[0])
    pair = load_pair(str(copies[0]), str(copies[1]))
    tokens = torch.tensor([[3, 4]])
    assert pair.target(tokens).logits.shape == pair.draft(tokens).logits.shape
    assert pair.target_identity == describe_model(make_model(0, vocab_size=80), "x").__class__(
        **{**pair.target_identity.to_dict(), "vocab_size": 80}
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_known_from_its_configuration_alone(pair_folders, dtype):
    pair = load_pair(pair_folders.target, pair_folders.draft, dtype, "cpu")
    assert identify(pair_folders.target, "target", getattr(torch, dtype)) == pair.target_identity
    assert identify(pair_folders.draft, "draft", getattr(torch, dtype)) == pair.draft_identity


def test_a_precision_that_does_not_exist_is_named(pair_folders):
    with pytest.raises(DslError, match=r"dtype 'int3' is unknown; choose auto, float32, bfloat16, float16"):
        load_pair(pair_folders.target, pair_folders.draft, "int3", "cpu")


def test_a_device_map_changes_no_logit(pair_folders):
    pytest.importorskip("accelerate")
    plain, spread = (
        load_pair(pair_folders.target, pair_folders.draft, device="cpu", device_map=device_map)
        for device_map in (None, "auto")
    )
    tokens = torch.tensor([[3, 4, 5]])
    assert spread.target_identity == plain.target_identity
    with torch.inference_mode():
        assert torch.equal(spread.target(tokens).logits, plain.target(tokens).logits)


@pytest.mark.filterwarnings("ignore")  # of bitsandbytes
def test_a_quantized_target_is_near_the_whole_one_and_says_so(pair_folders):
    pytest.importorskip("bitsandbytes")
    plain = load_pair(pair_folders.target, pair_folders.draft, device="cpu")
    small = load_pair(pair_folders.target, pair_folders.draft, device="cpu", quantization="8bit")
    assert small.target.get_memory_footprint() < plain.target.get_memory_footprint()
    assert small.draft.get_memory_footprint() == plain.draft.get_memory_footprint()
    assert small.target_identity == identify(pair_folders.target, "target", torch.float32, "8bit")
    assert (small.target_identity.dtype, small.draft_identity.dtype) == ("8bit", "float32")
    assert small.target_identity.config_hash == plain.target_identity.config_hash
    with torch.inference_mode():
        one, other = (pair.target(torch.tensor([[3, 4, 5]])).logits for pair in (plain, small))
    assert not torch.equal(one, other)
    assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize(
    ("library", "options"), [("accelerate", {"device_map": "auto"}), ("bitsandbytes", {"quantization": "8bit"})]
)
def test_a_missing_library_is_named_with_what_installs_it(pair_folders, monkeypatch, library, options):
    monkeypatch.setattr(source, "find_spec", lambda name: None if name == library else True)
    with pytest.raises(DslError, match=rf"need {library}, which is not installed; run pip install 'dsl-train\[gpu\]'"):
        load_pair(pair_folders.target, pair_folders.draft, device="cpu", **options)
