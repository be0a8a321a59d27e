"""Embeddings, rankings, metrics and statistics."""
