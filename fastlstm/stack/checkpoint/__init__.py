"""Layers that keep states every so many steps instead of a tape of all."""
