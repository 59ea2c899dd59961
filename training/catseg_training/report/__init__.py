"""What a run leaves for its readers: results, charts, cards, the saved model."""
