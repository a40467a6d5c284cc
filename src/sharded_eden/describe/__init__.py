"""What is in the data and in a training step: `stats` and `show`."""
