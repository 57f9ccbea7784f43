"""A target and a draft that belong together, and what they continue."""
