"""What the daemon shows of itself: the state that page, `status --json` and metrics share, and the doctor's checks."""
