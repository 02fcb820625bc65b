"""How one step is spread over devices: one file a strategy."""
