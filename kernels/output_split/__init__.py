"""The attention output projection with its reduction split, and the parts added in a stated order."""
