"""What a draft step and a verification cost on this machine."""
