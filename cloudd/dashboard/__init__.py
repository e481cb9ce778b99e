"""The dashboard: one page on loopback that shows devices, services and hard samples, and the same numbers for machines."""
