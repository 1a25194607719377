"""The stages of `recipes/clarify`: thin entry points, one a stage."""
