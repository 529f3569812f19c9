"""The feed-forward down projection, added to the residual stream."""
