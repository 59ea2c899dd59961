"""What the interactive demo does, as plain functions that know nothing of its interface."""
