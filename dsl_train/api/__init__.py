"""Generation from Python."""
