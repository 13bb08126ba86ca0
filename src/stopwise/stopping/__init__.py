"""The stopping rules, their registry and their judge."""
