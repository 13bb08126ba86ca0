"""Fine-tuning that stops and resumes, and the prediction of it."""
