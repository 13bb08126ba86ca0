"""The paper's claims with a verdict each."""
