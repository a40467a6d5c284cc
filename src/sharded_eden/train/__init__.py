"""Whose turn is which window: orders, samplers and trainers."""
