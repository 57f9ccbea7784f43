"""The small (target, draft) pair in ``checkpoints/reference``: its text, its tokenizer, its training."""
