"""Segments image files: finds them, reads them, writes their results, and goes on where an earlier run stopped."""
