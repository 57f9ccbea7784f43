"""From logits to primitives, from primitives to the feature vector."""
