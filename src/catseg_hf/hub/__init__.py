"""What goes to the Hub beside a model."""
