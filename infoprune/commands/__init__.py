"""The subcommands of ``infoprune``, one file each."""
