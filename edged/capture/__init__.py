"""Where pictures come from beside HTTP (folders, cameras, recordings) and where decisions go (files, hooks, MQTT)."""
