"""The definition of what is computed, in plain torch."""
