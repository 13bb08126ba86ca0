"""The empirical neural tangent kernel, computed without its Jacobian."""
