"""Batches of masked pairs and the pretraining loop."""
