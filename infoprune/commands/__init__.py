"""What the subcommands of ``infoprune`` do, one file a kind."""
