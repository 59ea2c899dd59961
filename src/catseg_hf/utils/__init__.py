"""What the other packages rest on: files that are seen whole or not at all, and processes that share a job."""
