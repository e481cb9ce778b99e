"""The command line of edged: one file a verb, all but `run` thin clients of the local API."""
