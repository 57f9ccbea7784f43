"""From traces to a predictor artifact."""
