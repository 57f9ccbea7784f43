"""The real pair: SmolLM2-135M-Instruct as the target, and a draft distilled from it."""
