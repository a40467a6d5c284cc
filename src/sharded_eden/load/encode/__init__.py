"""Letters -> rows of tensors."""
