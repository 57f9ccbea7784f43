"""Trace folders, and every decision a policy could meet on them."""
