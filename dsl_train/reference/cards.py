"""Model cards of the reference pair."""

from typing import Any

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# {title}

{params:,} parameters, Llama architecture, byte-level BPE with 4,096 tokens, context 2,048. The {role} of the
`dsl_train` reference pair: small enough to live in the repository, trained well enough to be worth speeding up.
It continues Python source; it follows no instructions and knows nothing else.

## Recipe
{recipe}
Muon for matrices and AdamW for the rest, peak learning rate {learning_rate}, bfloat16 autocast, {batch_tokens:,}
tokens a step: sequences of {length}, then of {longest} in the last fifth of the run.
Reproduce with `python -m dsl_train.reference.train`.

## Text
Python source present on any machine with this project installed: the standard library ({library:,} tokens), its
tests ({tests:,}) and the packages the project depends on ({packages:,}), drawn 40 : 18 : 42. The standard library is
under the PSF licence, the packages under BSD, MIT, Apache-2.0 or PSF terms. The modules listed in
`dsl_train/reference/corpus.py` as held out, and their tests, were never trained on.

## Held-out loss
Cross-entropy on the held-out test modules, 512-token windows: target {target_loss:.3f}, draft {draft_loss:.3f} nats a
token. The two agree on the most likely token at {agreement:.1%} of the positions.
"""


def model_card(role: str, num_parameters: int, facts: dict[str, Any]) -> str:
    recipes = {
        "target": f"Next-token cross-entropy for {facts['target_steps']:,} steps.",
        "draft": f"Distilled from the target: KL(target || draft) on the same text for {facts['draft_steps']:,} steps.",
    }
    title = f"Reference {role}: {'12 layers' if role == 'target' else '2 layers'} x 256"
    text = {"role": role, "title": title, "params": num_parameters, "recipe": recipes[role]}
    return _CARD.format(**text, longest=facts[f"{role}_long_length"], **facts["tokens"], **facts)
