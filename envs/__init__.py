"""Simulated worlds, their scripted experts, and rollouts in them: gymnasium, mujoco, numpy; no torch, no diffusion."""

import os
import sys
from ctypes.util import find_library

# mujoco chooses how it draws when it is imported, and without a screen it chooses nothing that works
if sys.platform == "linux" and not os.environ.get("DISPLAY") and find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")
