"""Figures F1 to F11: a table in, a picture out. Nothing here imports torch."""
