"""Measures how much a run's mechanism gives away: a lower bound of epsilon, from trials with canaries."""
