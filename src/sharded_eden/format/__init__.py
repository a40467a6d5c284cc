"""The files on disk: schemas, window geometry, fingerprints, and how databases are opened, checked and written."""
