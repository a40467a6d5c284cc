"""SQLite's file format, read and written by hand: the only package that knows it."""
