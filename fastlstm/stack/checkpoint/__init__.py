"""Layers that save their states every few steps instead of a tape of all steps."""
