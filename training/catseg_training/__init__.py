"""What the training scripts are made of: data, the training loop, evaluation and reports."""
