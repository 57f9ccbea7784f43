"""Lookahead policies: who decides whether to draft another token."""
