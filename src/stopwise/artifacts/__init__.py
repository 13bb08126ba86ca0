"""Parquet with provenance, and what is read back from it."""
