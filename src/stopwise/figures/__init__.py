"""Figures F1 to F10: a table in, a picture out. Nothing here imports torch."""
