"""The dashboard: one page on loopback with devices, services and hard samples, and the same numbers for machines."""
