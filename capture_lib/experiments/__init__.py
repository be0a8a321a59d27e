"""Runs and their cached stages, variants, comparison, claims."""
