"""Generates with the draft and the predictor in whose folder this file lies:

    target.generate(**inputs, custom_generate="<draft>/dsl", trust_remote_code=True)

The loop is that of the package dsl-train, which `requirements.txt` beside this file asks for.
"""

from dsl_train.hf.shipped import generate

__all__ = ["generate"]
