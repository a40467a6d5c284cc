"""Reads and writes pages of SQLite's file format; no other package depends on that format."""
