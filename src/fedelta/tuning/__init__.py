"""What is trained: one file per tuning method."""
