"""The MLflow record of a run."""
