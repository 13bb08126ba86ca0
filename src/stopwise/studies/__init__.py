"""Rules and theory judged: on the path, on real runs, where the truth is known."""
