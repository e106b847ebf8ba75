"""Experiments on policies: each a module that is run, measures one question and writes its answer as JSON."""
