"""Penstock: a data-loading-first trainer for self-supervised vision models."""

__version__ = "0.1.0"
