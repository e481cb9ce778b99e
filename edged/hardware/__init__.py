"""What machine this is and which way of running a model suits it: facts, profiles, candidates, measurements, choice."""
