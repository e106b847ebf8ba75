"""The field's measures of crystals, each as its paper defines it.

What is slow runs in several processes (`each`), is kept on disk by content, and goes on where it was stopped.
"""
