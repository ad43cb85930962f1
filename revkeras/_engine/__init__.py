"""Discard, rebuild, differentiate: the walk through a stack, and one folder per Keras backend."""
