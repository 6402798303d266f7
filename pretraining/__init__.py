"""Pre-training of the bundled backbones on images made from random formulas; a small project of its own."""
