"""Exports models to other runtimes."""
