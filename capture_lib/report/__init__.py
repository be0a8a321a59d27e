"""Executed notebooks, pages and figures."""
