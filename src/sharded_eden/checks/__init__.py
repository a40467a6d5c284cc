"""What `verify` checks, one kind of check per file."""
