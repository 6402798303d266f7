"""Pre-training of the bundled backbones on images made from random formulas, independent of the library."""
