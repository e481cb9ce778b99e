"""The daemon on every edge device: serves inference locally, mines hard samples, keeps data in the plant."""
