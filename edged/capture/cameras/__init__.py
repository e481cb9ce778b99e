"""What reads a camera or a recording: one module a kind, used only inside the source process."""
