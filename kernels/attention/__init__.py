"""Query-key norm, rotary embedding, append to the key-value cache, and causal grouped-query attention."""
