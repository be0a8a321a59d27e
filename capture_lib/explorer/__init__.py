"""Clicking through results."""
