"""One module per tab; each has ``build(ctx)`` and nothing else that other tabs may call."""
