"""Object storage: URLs, lists of objects, and byte ranges of them, through obstore."""
