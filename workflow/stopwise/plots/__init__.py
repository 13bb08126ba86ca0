"""Figures: each a pure function of one Parquet table of the same name; nothing here imports torch."""
