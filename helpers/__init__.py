"""The course's own implementations: small modules, one idea each. Lessons import them by name."""
