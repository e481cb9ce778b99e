"""What both sides mean: formats, mathematics, protocols and runtimes. Starts no task, thread or server of its own."""

VERSION = "0.1.0"
