"""What a job needs and no number depends on: configuration, jobs, devices, progress."""
