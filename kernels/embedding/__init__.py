"""Token ids to rows of the embedding table."""
