"""What a finished run has learned, for people and for other programs. Nothing here trains."""
