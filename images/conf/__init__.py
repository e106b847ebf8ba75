"""Configuration of the image domain."""
