"""Lightning projects as people write them; none of them knows of pruning."""
