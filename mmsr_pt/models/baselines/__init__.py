"""What any model must beat: scores from counts alone."""
