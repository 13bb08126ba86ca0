"""What is written about a run: summary, results page, record, provenance."""
