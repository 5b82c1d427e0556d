"""Policy adapters, one module a model family; found by entry point ``attnstore.policies``."""
