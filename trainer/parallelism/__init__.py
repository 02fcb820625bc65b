"""Strategies that distribute a step over devices, one module each."""
