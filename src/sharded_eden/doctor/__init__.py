"""What `doctor` reports: packages, this machine, and a folder of data."""
