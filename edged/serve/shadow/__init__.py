"""A candidate looks at live pictures after their decision, in a process of its own, and nobody acts on what it says."""
