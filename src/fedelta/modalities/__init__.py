"""What an example is: one object each for images, texts and recordings."""
