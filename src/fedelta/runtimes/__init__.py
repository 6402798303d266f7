"""Where clients run, and how reliable they are there."""
