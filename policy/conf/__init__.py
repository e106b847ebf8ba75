"""Configuration of the policy domain."""
