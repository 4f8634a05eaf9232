"""The recipes of examples/recipes, timed."""
