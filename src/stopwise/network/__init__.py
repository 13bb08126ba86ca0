"""The language model as a function of its weights: loading, forward passes, adapters, heads."""
