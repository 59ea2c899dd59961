"""Labels in the files of the tools that people annotate with: read from them, and written for them."""
