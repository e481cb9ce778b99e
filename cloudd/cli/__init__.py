"""The `cloudd` command: one file a verb, each a thin client of the daemon's admin socket."""
