"""Gymnasium environments, scripted experts and rollouts. No torch, no diffusion."""
