"""The draft's distillation on a tiny target: answers and their labels, the loss, resuming, the small export."""

import json
import random

import pytest
import torch
from conftest import make_model, make_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from dsl_train.reference.smollm2 import prompts
from dsl_train.reference.smollm2.answers import pack
from dsl_train.reference.smollm2.distill import Distillation, DistillRun, distillation_loss
from dsl_train.reference.smollm2.export import ExportRun, export
from dsl_train.reference.smollm2.prompts import KINDS, PromptMaker
from dsl_train.reference.smollm2.teacher import Teacher, answer
from dsl_train.reference.smollm2.texts import batches, padded, read_wave

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = [[5, 9, 33], [7, 8, 9, 10, 11, 12], [40]]


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(3)
    config = make_model(seed=3).config
    config.hidden_size, config.rope_parameters = 64, {"rope_type": "default", "rope_theta": 10000.0}
    config.head_dim, config.tie_word_embeddings = 16, True
    return LlamaForCausalLM(config).eval()


def test_answers_are_the_models_own(llama):
    said = answer(Teacher(llama), PROMPTS, 12, 0.0, 0, seed=0)
    for prompt, ids in zip(PROMPTS, said, strict=True):
        alone = llama.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=0)
        assert ids == alone[0, len(prompt) :].tolist()


def test_answers_that_end_leave_the_others_as_they_are(llama):
    alone = [answer(Teacher(llama), [prompt], 40, 0.0, 0, seed=0)[0] for prompt in PROMPTS]
    ended = alone[1][5]  # taken for the end of a text, it comes at different places
    together = answer(Teacher(llama), PROMPTS, 40, 0.0, ended, seed=0)
    for ids, whole in zip(together, alone, strict=True):
        assert ids == (whole[: whole.index(ended) + 1] if ended in whole else whole)
    assert len(together[1]) <= 6


def test_a_wave_is_read_as_it_was_written_and_padded_so_that_each_place_predicts_its_token(llama, tmp_path):
    said = answer(Teacher(llama), PROMPTS, 6, 0.8, 0, seed=1)
    (tmp_path / "wave-0").write_bytes(pack(PROMPTS, said, "chat", 0.8))
    texts = read_wave(tmp_path / "wave-0")
    assert [list(text.prompt_ids) for text in texts] == PROMPTS
    assert [list(text.answer_ids) for text in texts] == said
    assert {text.temperature for text in texts} == {0.8}
    ids, predicts = padded(texts)
    assert predicts.sum(1).tolist() == list(map(len, said))
    row = texts[1]
    assert ids[1, predicts[1]].tolist() == [row.prompt_ids[-1], *row.answer_ids[:-1]]
    assert sum(len(batch) for batch in batches(texts, 12)) == 3


def test_the_loss_is_the_cross_entropy_to_the_targets_distribution_and_to_its_first_choice():
    generator = torch.Generator().manual_seed(0)
    logits, target_probs = (torch.randn(6, 30, generator=generator) for _ in range(2))
    target_probs = target_probs.softmax(-1)
    terms = -logits.log_softmax(-1)
    first = terms.gather(1, target_probs.argmax(-1, keepdim=True))[:, 0]
    expected = (0.7 * (terms * target_probs).sum(1) + 0.3 * first).mean()
    torch.testing.assert_close(distillation_loss(logits, target_probs.clone(), 0.3), expected)


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
def test_prompts_of_every_kind_are_ready_for_the_answer(kind, llama, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "german_sentences", lambda: ["Die Stadt liegt am Ufer eines Flusses."])
    (tmp_path / "code").write_text('{"prompt": "def f(): pass"}\n')
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    maker = PromptMaker(Teacher(llama), tokenizer, tmp_path / "code", random.Random(3))
    ready = tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n")
    made = maker.make(kind, 3)
    assert len(made) == 3
    assert all(ids[-len(ready) :] == ready for ids in made)


def test_a_draft_is_distilled_resumed_and_exported_small(llama, tmp_path):
    target = tmp_path / "target"
    llama.save_pretrained(target)
    make_tokenizer().save_pretrained(target)
    said = answer(Teacher(llama), PROMPTS * 4, 20, 0.0, 0, seed=0)
    for folder, texts in (("answers", PROMPTS * 4), ("held_out", [[3, *ids] for ids in PROMPTS * 4])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "wave-0000-00000.safetensors").write_bytes(pack(texts, said, "chat", 0.0))
    options = {"batch_tokens": 64, "hidden_size": 64, "layers": 1, "head_tokens": 48, "learning_rate": 1e-2}
    folders = {name: tmp_path / name for name in ("target", "answers", "held_out", "work")}
    run = DistillRun(**folders, output=tmp_path / "draft", minutes=0.05, **options)
    first = Distillation(run)
    before = first.step(read_wave(tmp_path / "answers" / "wave-0000-00000.safetensors"))
    first.train()
    after = first.step(read_wave(tmp_path / "answers" / "wave-0000-00000.safetensors"))
    assert after < before
    assert Distillation(run).steps == first.steps - 1  # the last step was not saved
    assert 0.0 < first.agreement(read_wave(tmp_path / "held_out" / "wave-0000-00000.safetensors"))["chat"] <= 1.0
    export(ExportRun(tmp_path / "draft", tmp_path / "small"))
    kept = load_file(tmp_path / "small" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float8_e4m3fn, torch.bfloat16}
    assert json.loads((tmp_path / "small" / "config.json").read_text())["draft_head_tokens"] == 48
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "draft", dtype=torch.float32)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0.07, atol=0.002)
