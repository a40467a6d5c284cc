"""Split files -> window databases and packs."""
