"""Where artifacts come from, and what vouches for it."""
