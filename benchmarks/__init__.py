"""Benchmarks: each compares things in one run on one machine, prints a table and writes JSON with its provenance."""
