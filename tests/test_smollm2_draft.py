"""The draft's distillation on a tiny target: answers and their labels, the loss, resuming, the small export."""

import json

import pytest
import torch
from conftest import make_model, make_tokenizer
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from dsl_train.reference.smollm2.answers import pack
from dsl_train.reference.smollm2.distill import Distillation, DistillRun, distillation_loss
from dsl_train.reference.smollm2.export import ExportRun, export
from dsl_train.reference.smollm2.teacher import Teacher, answer
from dsl_train.reference.smollm2.texts import batches, is_held_out, padded, read_wave

PROMPTS = [[5, 9, 33], [7, 8, 9, 10, 11, 12], [40]]


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(3)
    config = make_model(seed=3).config
    config.hidden_size, config.rope_parameters = 64, {"rope_type": "default", "rope_theta": 10000.0}
    config.head_dim, config.tie_word_embeddings = 16, True
    return LlamaForCausalLM(config).eval()


def test_answers_are_the_models_own_and_labelled_with_its_probabilities(llama):
    found = answer(Teacher(llama), PROMPTS, 12, 0.0, 0, 4, torch.Generator())
    for prompt, ids, top_ids, top_log_probs in zip(
        PROMPTS, found.token_ids, found.top_ids, found.top_log_probs, strict=True
    ):
        alone = llama.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=0)
        assert ids == alone[0, len(prompt) :].tolist()
        logits = llama(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).topk(4)
        assert torch.equal(top_ids, expected.indices)
        torch.testing.assert_close(top_log_probs, expected.values, atol=1e-4, rtol=0)


def test_a_wave_is_read_as_it_was_written_and_padded_so_that_each_place_predicts_its_token(llama, tmp_path):
    found = answer(Teacher(llama), PROMPTS, 6, 0.8, 0, 4, torch.Generator().manual_seed(1))
    (tmp_path / "wave").write_bytes(pack(PROMPTS, found, "chat", 0.8))
    texts = read_wave(tmp_path / "wave")
    assert [text.prompt_ids for text in texts] == PROMPTS
    assert [text.answer_ids for text in texts] == found.token_ids
    assert not texts[0].greedy
    ids, predicts = padded(texts)
    assert predicts.sum(1).tolist() == list(map(len, found.token_ids))
    row = texts[1]
    assert ids[1, predicts[1]].tolist() == [row.prompt_ids[-1], *row.answer_ids[:-1]]
    assert sum(len(batch) for batch in batches(texts, 12)) == 3
    assert [is_held_out(number) for number in range(8, 11)] == [False, True, False]


def test_the_loss_with_every_token_summed_is_the_cross_entropy_to_the_labels():
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(6, 8, generator=generator), torch.randn(30, 8, generator=generator)
    ids = torch.stack([torch.randperm(40, generator=generator)[:3] for _ in range(6)])  # some beyond the head
    probs = torch.tensor([0.5, 0.3, 0.1]).expand(6, 3)
    log_probs = functional.pad((hidden @ head.T).log_softmax(-1), (0, 10))
    inside = ids < 30
    terms = -(log_probs.gather(1, ids) * inside)
    expected = (0.7 * (terms * probs).sum(1) + 0.3 * terms[:, 0]).mean()
    torch.testing.assert_close(distillation_loss(hidden, head, ids, probs, 0.3), expected)


def test_a_draft_is_distilled_resumed_and_exported_small(llama, tmp_path):
    target = tmp_path / "target"
    llama.save_pretrained(target)
    make_tokenizer().save_pretrained(target)
    found = answer(Teacher(llama), PROMPTS * 4, 20, 0.0, 0, 4, torch.Generator())
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "wave-0000-00000.safetensors").write_bytes(pack(PROMPTS * 4, found, "chat", 0.0))
    options = {"batch_tokens": 64, "hidden_size": 64, "layers": 1, "head_tokens": 48, "learning_rate": 1e-2}
    folders = {"target": target, "answers": tmp_path / "answers", "work": tmp_path / "work"}
    run = DistillRun(**folders, output=tmp_path / "draft", minutes=0.05, **options)
    first = Distillation(run)
    before = first.step(read_wave(tmp_path / "answers" / "wave-0000-00000.safetensors"))
    first.train()
    after = first.step(read_wave(tmp_path / "answers" / "wave-0000-00000.safetensors"))
    assert after < before
    assert Distillation(run).steps == first.steps - 1  # the last step was not saved
    export(ExportRun(tmp_path / "draft", tmp_path / "small"))
    kept = load_file(tmp_path / "small" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float8_e4m3fn, torch.bfloat16}
    assert json.loads((tmp_path / "small" / "config.json").read_text())["draft_head_tokens"] == 48
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "draft", dtype=torch.float32)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0.07, atol=0.002)
