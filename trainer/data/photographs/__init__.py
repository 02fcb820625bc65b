"""Photographs of any size: their files, where they are kept, and the processes that read them."""
