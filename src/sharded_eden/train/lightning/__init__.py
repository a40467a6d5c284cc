"""The data module for PyTorch Lightning."""
