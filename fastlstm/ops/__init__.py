"""One layer as torch ops, with their derivatives."""
