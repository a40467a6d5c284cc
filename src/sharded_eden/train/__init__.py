"""The order of windows, samplers, and the connections to trainers."""
