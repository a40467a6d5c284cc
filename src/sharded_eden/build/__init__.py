"""Input files -> one sequence database for each sample."""
