"""Projects, users, keys, passwords and links, and the vault of secrets."""
