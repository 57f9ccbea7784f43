"""Turning prompts or responses into traces: inputs, the two collectors, parts that survive a crash, shards and Ray."""
