"""Feeds the planner of every service with what its worker measures, and says by which route an asked sample goes."""
