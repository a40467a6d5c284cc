"""Where a window is -> its letters."""
