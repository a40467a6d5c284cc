"""From databases to tensors. Runs in workers; does not import Lightning."""
