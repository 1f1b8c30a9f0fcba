"""Who may ask, and how much: keys, scopes, rate limits, other origins."""
