"""From a person's rows to prompts, labels and splits."""
