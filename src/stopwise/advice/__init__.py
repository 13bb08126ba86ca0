"""stopwise advise: what to do with one data set, before training."""
