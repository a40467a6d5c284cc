"""Speed, as ratios of interleaved runs: `python -m benchmarks --help`."""
