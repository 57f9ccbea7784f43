"""Policies over traces, thresholds, baselines at their best."""
