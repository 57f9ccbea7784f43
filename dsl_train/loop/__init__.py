"""Draft, verify, commit: the four files to read."""
