"""FastLSTM inside other libraries: a module for each, imported by name."""
