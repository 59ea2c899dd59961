"""Pre-labelling by words inside annotation tools: a module for each, which needs the tool's own package."""
