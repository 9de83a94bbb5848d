"""What a run has learned, shown."""
