"""Names, frozen values, prices and files that every other folder may use."""
