"""Example components to copy."""
