"""`target.generate(..., assistant_model=attach(draft), tokenizer=..., assistant_tokenizer=...)`: two tokenizers."""

import pytest
import torch
from conftest import END, make_model, make_tokenizer, perturb
from families.zoo import ENCODER_DECODERS
from test_hf_attach import Watched
from tiny_predictor import write_predictor
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import dsl_train
from dsl_train.base.records import DslError
from dsl_train.features.entries import FEATURES
from dsl_train.pair.identity import describe_model
from dsl_train.pair.loading import Pair

TOKENIZER = make_tokenizer()
PROMPT = torch.tensor([[50, 27, 63, 6, 17]])


def shuffled(target):
    """The same characters under other numbers: a tokenizer, and the target itself in those numbers. transformers tells
    tokenizers apart by the models' sizes, so it has two more, which are never the most likely."""
    order = torch.cat([torch.tensor([0, 1]), 2 + torch.randperm(62, generator=torch.Generator().manual_seed(0))])
    names = {index: token for token, index in TOKENIZER.get_vocab().items()}
    vocabulary = {names[int(old)]: new for new, old in enumerate(order) if int(old) in names}
    draft = make_model(seed=0, vocab_size=66)
    weights = target.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name][order], weights[name][1:2].expand(2, -1)])
    draft.load_state_dict(weights)
    return draft, _tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))


def merging(target):
    """Tokens of up to three characters, in a larger vocabulary: no token of the target's fits one of the draft's."""
    characters = [token for token in TOKENIZER.get_vocab() if len(token) == 1]
    pairs = [(first, second) for first in characters[:12] for second in characters[:12]]
    merges = [*pairs, *(("".join(pair), characters[3]) for pair in pairs[:40])]
    tokens = [END, "<|unknown|>", *characters, *dict.fromkeys("".join(pair) for pair in merges)]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<|unknown|>")
    return make_model(seed=5, vocab_size=len(tokens)), _tokenizer(model)


def _tokenizer(model):
    tokenizer = Tokenizer(model)
    if isinstance(model, models.WordLevel):
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token="<|unknown|>")


@pytest.fixture(scope="module")
def target():
    return make_model(seed=0)


def generate(target, draft, tokenizer, inputs=PROMPT, policy=None, **options):
    options = {"max_new_tokens": 40, "do_sample": False, **options}
    assistant = dsl_train.attach(draft, policy=policy) if policy else draft
    return target.generate(
        inputs, assistant_model=assistant, tokenizer=TOKENIZER, assistant_tokenizer=tokenizer, **options
    )


@pytest.mark.parametrize("make", [shuffled, merging])
@pytest.mark.parametrize("policy", ["static:4", "heuristic", "random:0.7,1,7", Watched("static:5")])
@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 1.4}, {"max_new_tokens": 1}, {"eos_token_id": [33, 45]}]
)
def test_greedy_text_is_the_targets(target, make, policy, options):
    found = generate(target, *make(target), policy=policy, **options)
    assert found.tolist() == target.generate(PROMPT, **{"max_new_tokens": 40, "do_sample": False, **options}).tolist()


@pytest.mark.parametrize("make", [shuffled, merging])
@pytest.mark.parametrize("length", [1, 216, 250])
def test_extreme_prompts_are_continued_as_by_the_target(target, make, length):
    prompt = torch.randint(1, 64, (1, length), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": min(40, 257 - length)}
    found = generate(target, *make(target), prompt, Watched("static:7"), **options)
    assert found.tolist() == target.generate(prompt, do_sample=False, **options).tolist()


def test_a_text_of_special_tokens_alone_is_continued(target):
    prompt = torch.tensor([[0]])
    draft, tokenizer = shuffled(target)
    expected = target.generate(prompt, max_new_tokens=40, do_sample=False)
    assert generate(target, draft, tokenizer, prompt, "static:4").tolist() == expected.tolist()


def test_features_are_those_of_one_tokenizer_where_the_tokens_correspond(target):
    """The shuffled draft is the unshuffled one under other numbers, and agreements and copies know tokens by equality
    alone."""
    same, other = Watched("static:5"), Watched("static:5")
    draft = perturb(target, scale=0.15, seed=1)
    alone = target.generate(PROMPT, max_new_tokens=60, do_sample=False)
    one = target.generate(
        PROMPT, assistant_model=dsl_train.attach(draft, policy=same), max_new_tokens=60, do_sample=False
    )
    assert (
        generate(target, *shuffled(draft), policy=other, max_new_tokens=60).tolist() == one.tolist() == alone.tolist()
    )
    columns = [i for i, feature in enumerate(FEATURES) if feature.group in ("agreement", "copy", "setting")]
    expected = {(step.start, step.position): step.features[columns] for step in same.steps}
    compared = [(step.features[columns], expected.get((step.start, step.position))) for step in other.steps]
    compared = [(found, wanted) for found, wanted in compared if wanted is not None]
    assert len(compared) > 20
    for found, wanted in compared:
        assert found == pytest.approx(wanted, abs=2e-4)
    accepted = [finished.num_accepted for finished in other.rounds]
    assert 0 < sum(accepted) < sum(len(finished.drafted) for finished in other.rounds)


def test_a_predictor_of_the_draft_decides_at_a_given_threshold(target, tmp_path):
    draft, tokenizer = shuffled(target)
    other = make_model(seed=1, num_layers=1)
    names = (describe_model(other, ""), describe_model(draft, ""))
    write_predictor(tmp_path, Pair(other, draft, TOKENIZER, *names))
    expected = target.generate(PROMPT, max_new_tokens=40, do_sample=False).tolist()
    for threshold in (0.1, 0.9):
        assistant = dsl_train.attach(draft, tmp_path, threshold)
        assert generate(target, assistant, tokenizer).tolist() == expected
    with pytest.raises(DslError, match=r"is not measured, since their tokenizers differ; pass threshold="):
        generate(target, dsl_train.attach(draft, tmp_path), tokenizer)
    stranger, its_tokenizer = merging(target)
    with pytest.raises(DslError, match=r"was trained for draft  \(vocab_size 66\), but this draft"):
        generate(target, dsl_train.attach(stranger, tmp_path, 0.5), its_tokenizer)


@pytest.mark.parametrize("make", [shuffled, merging])
def test_sampling_is_refused_before_transformers_rebuilds_the_draft(target, make):
    draft, tokenizer = make(target)
    head, embeddings = draft.get_output_embeddings(), draft.get_input_embeddings()
    with pytest.raises(DslError, match=r"has a tokenizer of its own.*pass do_sample=False"):
        generate(target, draft, tokenizer, policy="static:4", do_sample=True)
    assert draft.get_output_embeddings() is head
    assert draft.get_input_embeddings() is embeddings


def test_encoder_decoders_need_one_tokenizer():
    target, draft = ENCODER_DECODERS[0].make(), ENCODER_DECODERS[0].make(vocab_size=70)
    with pytest.raises(DslError, match="is an encoder-decoder, and the draft's encoder cannot read its tokens"):
        generate(target, draft, make_tokenizer(), torch.tensor([[5, 6, 7]]), "static:4")
