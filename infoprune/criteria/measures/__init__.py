"""Quantities that criteria and allocations measure: entropies, distances, ranks and correlations."""
