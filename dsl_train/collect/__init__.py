"""Turning prompts into traces: prompts, the two collectors, parts that survive a crash."""
