"""Measures dynjit against DyNet and PyTorch; `python -m perf --help` tells how."""
