"""What is predicted: labels, losses, measures and answers; one file per task."""
