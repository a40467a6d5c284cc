"""Contigs that share sequence: sketches, pairs above a containment threshold, and groups of them."""
