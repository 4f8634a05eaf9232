"""How the layers of a call run one after the other."""
