"""What drafting and verifying cost, learned from the rounds that are generated."""
