"""The attention output projection, added to the residual stream."""
