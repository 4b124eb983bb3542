"""Validation: run a plan on shapes, find its conflicts, and resolve them or freeze their groups."""
