"""Where pictures come from beside HTTP (watched folders) and where decisions go (JSONL files)."""
