"""Parts that stand where a user's own would, to be copied."""
