"""Every stopping rule against every other: live on the clock, or replayed over traces with a cost model."""
