"""Tests of the CUDA target, with no GPU: compiler, emulator, simulator."""
