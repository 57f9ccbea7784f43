"""Encoder-decoder pairs through the commands: collected, trained for, generated with, measured."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from collecting import assert_same_rows
from conftest import make_tokenizer
from families.zoo import ENCODER_DECODERS, add_noise
from transformers import AutoModelForSpeechSeq2Seq, WhisperFeatureExtractor

import dsl_train
from dsl_train.api.speculator import Speculator
from dsl_train.base.records import DslError
from dsl_train.cli.bench import main as bench
from dsl_train.cli.collect import main as collect
from dsl_train.cli.generate import main as generate
from dsl_train.collect.audio import audio_of
from dsl_train.pair.loading import load_pair
from dsl_train.traces.store import open_traces
from dsl_train.train.config import TrainConfig
from dsl_train.train.fit import fit

T5, BART, WHISPER = (
    next(family for family in ENCODER_DECODERS if family.model.startswith(name)) for name in ("T5", "Bart", "Whisper")
)
VOCAB_SIZE, FRAMES = 64, 100  # a second of audio, as the smallest feature extractor cuts it
TEXTS = [f"translate {a}{b} ({a * 3 + b})" for a in range(6) for b in range(4)]


def save_pair(root: Path, family, **changes) -> dict[str, str]:
    target, twin = (family.make(vocab_size=VOCAB_SIZE, **changes) for _ in range(2))
    for role, model in (("target", target), ("draft", add_noise(twin))):
        model.save_pretrained(root / role)
        make_tokenizer().save_pretrained(root / role)
    return {role: str(root / role) for role in ("target", "draft")}


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> dict[str, str]:
    return save_pair(tmp_path_factory.mktemp("t5"), T5, max_position_embeddings=512)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> dict[str, str]:
    sizes = {"max_source_positions": FRAMES // 2, "max_target_positions": 256}
    folders = save_pair(tmp_path_factory.mktemp("whisper"), WHISPER, **sizes)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folders["target"])
    return folders


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
    return write_lines(tmp_path_factory.mktemp("prompts") / "texts.jsonl", [{"prompt": text} for text in TEXTS])


@pytest.fixture(scope="module")
def traces(t5, prompts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("traces")
    assert collect(arguments(t5, prompts=prompts, output=folder, max_new_tokens=16, tail_length=4)) == 0
    return folder


def write_lines(path: Path, rows: list) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def arguments(*groups, **more) -> list[str]:
    options = {key: value for group in (*groups, more) for key, value in group.items()} | {"device": "cpu"}
    return [f"--{name}={value}" for name, value in options.items()]


def assert_same_traces(*folders: Path) -> None:
    """Of the same inputs in the same order, which rows do not name: decoders all begin alike."""
    found, expected = (open_traces([folder]) for folder in folders)
    assert [s.prompt_id for s in found.sequences] == [s.prompt_id for s in expected.sequences]
    assert_same_rows({"all": found.rows}, {"all": expected.rows})


def answer(pair, text: str, **options) -> list[int]:
    inputs = torch.tensor([pair.tokenizer(text)["input_ids"]])
    return pair.target.generate(inputs, max_new_tokens=16, do_sample=False, **options)[0].tolist()


def clip(number: int) -> np.ndarray:
    """A second of a tone, each number its own."""
    return np.sin(np.arange(16_000) * 0.05 * 2**number).astype(np.float32)


def test_rows_are_collected_about_the_targets_own_answers(t5, traces):
    pair = load_pair(**t5, device="cpu")
    collected = open_traces([traces])
    assert len(collected.sequences) == len(TEXTS)
    for sequence, text in zip(collected.sequences, TEXTS, strict=True):
        assert sequence.prompt_token_ids.tolist() == [1]  # what the decoder begins with
        assert [1, *sequence.response_token_ids.tolist()] == answer(pair, text)
    assert 0.1 < collected.rows["accepted"][collected.rows["depth"] == 0].mean() < 0.9
    assert collected.rows["depth"].max() == 4


def test_both_methods_and_responses_is_logged_give_the_same_rows(t5, prompts, traces, tmp_path):
    oracle = arguments(t5, prompts=prompts, output=tmp_path / "oracle", method="oracle")
    assert collect([*oracle, "--max_new_tokens=16", "--tail_length=4"]) == 0
    assert_same_traces(tmp_path / "oracle", traces)
    responses = [sequence.response_token_ids.tolist() for sequence in open_traces([traces]).sequences]
    log = [{"prompt": text, "response_token_ids": ids} for text, ids in zip(TEXTS, responses, strict=True)]
    given = {"responses": write_lines(tmp_path / "log.jsonl", log), "output": tmp_path / "given", "tail_length": 4}
    assert collect(arguments(t5, given)) == 0
    assert_same_traces(tmp_path / "given", traces)


def test_a_trained_predictor_serves_every_way_in_and_every_mode_of_the_bench(t5, prompts, traces, tmp_path, capsys):
    found = tmp_path / "predictor"
    fit(TrainConfig([traces], found, ship_to=Path(t5["draft"]), hidden=(8,), epochs=2))
    pair = load_pair(**t5, device="cpu")
    expected = answer(pair, TEXTS[0])
    result = dsl_train.generate(**t5, prompt=TEXTS[0], max_new_tokens=16).result
    assert [*result.prompt_token_ids, *result.token_ids] == expected
    decoded = {"custom_generate": dsl_train.hf.decode, "draft_model": pair.draft, "policy": "learned"}
    assert answer(pair, TEXTS[0], **decoded) == expected
    options = {**t5, "prompts": prompts, "num_prompts": 2, "max_new_tokens": 10}
    policies = [f"--policies+={name}" for name in ("static:2", "learned", "transformers", "transformers-assisted")]
    live = [*arguments(options, repeats=1), "--policies=[autoregressive]", *policies, "--json"]
    assert bench(live) == 0
    timed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not timed["mismatches"]
    assert [policy["name"] for policy in timed["policies"]][-2:] == ["transformers", "transformers-assisted"]
    sampled = {"mode": "verify", "policies": "[static:2]", "draws": 60, "law_prompts": 1}
    assert bench(arguments(options, sampled)) == 0
    assert bench(arguments(mode="replay", traces=f"[{traces}]", policies="[static:2,learned]", predictor=found)) == 0


def test_text_is_generated_from_the_command_line(t5, capsys):
    pair = load_pair(**t5, device="cpu")
    assert generate([*arguments(t5, prompt=TEXTS[1], max_new_tokens=16, policy="static:3"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])["generations"][0]["text"]
    assert shown == pair.tokenizer.decode(answer(pair, TEXTS[1])[1:], skip_special_tokens=True)


def test_forced_first_tokens_belong_to_the_decoders_prompt(tmp_path):
    pair = load_pair(**save_pair(tmp_path, BART), device="cpu")
    pair.target.generation_config.forced_bos_token_id = 7
    found = Speculator(pair, "static:3").generate("abc def", max_new_tokens=15).result
    assert [*found.prompt_token_ids, *found.token_ids] == answer(pair, "abc def")
    assert found.prompt_token_ids == (1, 7)


@pytest.mark.filterwarnings("ignore")  # of Whisper's own generate
def test_speech_is_collected_from_files_arrays_and_features_and_transcribed_as_by_the_target(whisper, tmp_path):
    with wave.open(str(tmp_path / "0.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((clip(0) * 32767).astype("<i2").tobytes())
    np.save(tmp_path / "1.npy", clip(1))
    pair = load_pair(**whisper, device="cpu")
    extractor = WhisperFeatureExtractor.from_pretrained(whisper["target"])
    features = [torch.tensor(extractor(clip(i), sampling_rate=16_000)["input_features"]) for i in range(4)]
    rows = [
        {"audio": str(tmp_path / "0.wav"), "text": "not read"},
        {"audio": str(tmp_path / "1.npy")},
        {"audio": {"array": clip(2).tolist(), "sampling_rate": 16_000}},
        {"input_features": features[3][0].tolist()},
    ]
    source = write_lines(tmp_path / "clips.jsonl", rows)
    folders = [tmp_path / method for method in ("hindsight", "oracle")]
    for folder in folders:
        options = {"prompts": source, "output": folder, "method": folder.name, "max_new_tokens": 12, "tail_length": 4}
        assert collect(arguments(whisper, options)) == 0
    assert_same_traces(*folders)
    speculator = Speculator(pair, "static:3")
    for i, sequence in enumerate(open_traces(folders[:1]).sequences):
        alone = pair.target.generate(features[i], max_new_tokens=12, do_sample=False)[0].tolist()
        if i:  # 16 bits round the first
            assert sequence.response_token_ids.tolist() == alone[-len(sequence.response_token_ids) :]
        for audio in (clip(i), features[i][0]):
            found = speculator.generate(audio, max_new_tokens=12).result
            assert list(found.token_ids) == alone[-len(found.token_ids) :]
    sampled = {"policies": "[static:2]", "max_new_tokens": 8, "draws": 40, "law_prompts": 1}
    assert bench(arguments(whisper, sampled, prompts=source, mode="verify")) == 0


@pytest.mark.filterwarnings("ignore")
def test_whispers_decoder_begins_with_language_task_and_no_timestamps_as_in_its_own_generate(whisper):
    pair = load_pair(**whisper, device="cpu")
    settings = pair.target.generation_config
    settings.lang_to_id, settings.task_to_id = {"<|en|>": 50, "<|de|>": 51}, {"transcribe": 52, "translate": 53}
    settings.is_multilingual, settings.no_timestamps_token_id = True, 54
    speculator = Speculator(pair, "static:3")
    features = torch.randn(8, FRAMES, generator=torch.Generator().manual_seed(0))
    for language, task in (("de", "translate"), ("en", None), (None, None)):
        settings.language, settings.task = language, task
        found = speculator.generate(features, max_new_tokens=12).result
        alone = AutoModelForSpeechSeq2Seq.from_pretrained(whisper["target"]).eval()
        alone.generation_config = settings
        output = alone.generate(features[None], max_new_tokens=12, do_sample=False, return_dict_in_generate=True)
        assert [*found.prompt_token_ids, *found.token_ids] == output["sequences"][0].tolist()
        assert found.prompt_token_ids[-1] == 54
    settings.return_timestamps = True
    with pytest.raises(DslError, match=r"return_timestamps is set"):
        speculator.generate(features)


def test_what_a_pair_cannot_read_is_refused(t5, whisper, tmp_path):
    text, speech = (Speculator(load_pair(**folders, device="cpu"), "static:2") for folders in (t5, whisper))
    with pytest.raises(DslError, match=r"target .* reads audio, not text; give samples"):
        speech.generate("abc")
    with pytest.raises(DslError, match=r"target .* reads text, not audio; give a text"):
        text.generate(clip(0))
    other = save_pair(tmp_path, WHISPER, num_mel_bins=4)
    with pytest.raises(DslError, match=r"different audio features: 8 and 4 mel bins"):
        load_pair(whisper["target"], other["draft"], device="cpu")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("nowhere.wav", "does not exist"),
        ({"array": "noise"}, "no array of numbers"),
        ([[[1.0], [2.0]], [[1.0], [2.0]]], r"audio of shape \(2, 2, 1\)"),
        (7, "audio as int cannot be read"),
        ({"bytes": b"ID3"}, "not a WAV file of integers"),
    ],
)
def test_audio_that_cannot_be_read_names_its_record(value, reason):
    with pytest.raises(DslError, match=f"clips.jsonl, line 3: .*{reason}"):
        audio_of("clips.jsonl, line 3", value)


def test_another_sampling_rate_puts_a_clip_aside_with_the_reason(whisper, tmp_path):
    rows = [{"audio": {"array": clip(i).tolist(), "sampling_rate": rate}} for i, rate in enumerate((16_000, 8_000))]
    source = write_lines(tmp_path / "clips.jsonl", rows)
    assert collect(arguments(whisper, prompts=source, output=tmp_path / "traces", max_new_tokens=8)) == 3
    rejected = (tmp_path / "traces" / "rejects" / "part-00000.jsonl").read_text()
    assert "has 8000 samples a second" in rejected
