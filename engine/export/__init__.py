"""Trained networks for other programs: one file for each layout of the weights, and a model card."""
