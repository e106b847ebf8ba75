"""Experiments on composition: ``python -m planning.experiments.<name> --priors <run> ... --out <file>.json``.

    obstacles    prior, energy, selection and particles where corridors are blocked that were free in the data
    halves       priors of two halves of a maze, stitched to plans through both
    corridors    which of two ways is taken under conflicting costs, beside the exact posterior
    robots       several robots from the prior of one, and an energy that keeps them apart

Each takes priors of several training seeds, gives all of them the same problems, and pools what comes of it.
"""
