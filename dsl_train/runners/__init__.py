"""One text through one model, with its cache."""
