"""From databases to tensors. Runs in a worker; no Lightning here."""
