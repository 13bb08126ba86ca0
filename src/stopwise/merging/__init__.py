"""Task vectors added and negated: predicted, measured, compared."""
