"""The numbers of a report, from traces and a predictor: frozen, plain, drawn elsewhere."""
