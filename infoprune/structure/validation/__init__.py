"""Validation: run a planned cut on shapes, find what contradicts it, and resolve or freeze that."""
