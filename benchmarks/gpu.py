"""A larger pair on a GPU: trained by the reference recipe, given a predictor, compared with transformers, in one lease.

    python benchmarks/gpu.py --output runs/gpu                          # on the GPU, bfloat16
    python benchmarks/gpu.py --output /tmp/try --device cpu --layers 2 --hidden 64 --target_steps 4 --draft_steps 4 \\
        --num_prompts 24 --max_new_tokens 16 --epochs 1                 # that it runs at all

The text is Python source found on the machine. Each stage is kept in --output and not repeated: tokenizer, token
streams and checkpoints in `work`, the models in `target` and `draft`, then `traces`, `predictor`, `compare.json`. A few
minutes of training make a pair that agrees often, no good models; only their speed is of interest here.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import compare
import torch

from dsl_train.cli import collect, train
from dsl_train.reference.pair import llama
from dsl_train.reference.train import ReferenceRun, train_pair

_HEAD_SIZE = 64


def main() -> None:
    args = arguments()
    if not (args.output / "draft" / "config.json").is_file():
        train_models(args)
    pair = ["--target", str(args.output / "target"), "--draft", str(args.output / "draft")]
    traces, predictor = str(args.output / "traces"), str(args.output / "predictor")
    collected = ["--prompts", compare.PROMPTS.format("train"), "--num_prompts", str(args.num_prompts)]
    collected += ["--max_new_tokens", str(args.max_new_tokens), "--output", traces]
    finish(collect.main([*pair, "--device", args.device, *collected]))
    finish(train.main(["--traces", f"[{traces}]", "--epochs", str(args.epochs), "--output", predictor]))
    timed = ["--predictor", predictor, "--device", args.device, "--compile"]
    timed += ["--num_prompts", str(args.num_timed), "--max_new_tokens", str(args.max_new_tokens)]
    compare.main([*pair, *timed, "--output", str(args.output / "compare.json")])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=28, help="of the target")
    parser.add_argument("--draft_layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=1024, help="width of both")
    parser.add_argument("--target_steps", type=int, default=800)
    parser.add_argument("--draft_steps", type=int, default=500)
    parser.add_argument("--batch_tokens", type=int, default=32_768, help="a training step's")
    parser.add_argument("--num_prompts", type=int, default=300, help="to train the predictor")
    parser.add_argument("--epochs", type=int, default=8, help="of the predictor")
    parser.add_argument("--num_timed", type=int, default=12, help="prompts to compare on")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    return parser.parse_args()


def train_models(args: argparse.Namespace) -> None:
    on_gpu = args.device != "cpu"
    run = ReferenceRun(
        output=args.output,
        work=args.output / "work",
        target_steps=args.target_steps,
        draft_steps=args.draft_steps,
        batch_tokens=args.batch_tokens if on_gpu else 2048,
        learning_rate=2e-3,  # wider than the reference pair
        compile=on_gpu,
        device=args.device,
    )
    shape = {
        "hidden_size": args.hidden,
        "mlp_size": int(2.75 * args.hidden),
        "num_heads": max(2, args.hidden // _HEAD_SIZE),
    }
    target, draft = (partial(llama, num_layers=layers, **shape) for layers in (args.layers, args.draft_layers))
    train_pair(run, target, draft)


def finish(code: int) -> None:
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
