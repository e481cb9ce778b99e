"""What the tests of several rooms share: tiny models, worker processes, small HTTP clients."""
