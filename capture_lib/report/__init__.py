"""Executed notebooks, pages and figures."""
NUMBERED = "[0-9A][0-9]_*.ipynb"  # the names of notebooks; A1, A2 … are appendices
