"""Photographs of any size: files, storage, and the processes that read them."""
