"""Window or pack index -> where the window is."""
