"""Weights and models from and to elsewhere, and what others' tools are told of these modules."""
