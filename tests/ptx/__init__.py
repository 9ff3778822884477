"""Tools that verify CUDA kernels with no GPU.

compile      a kernel of numba-cuda -> PTX, without a driver
lint         PTX -> machine code of real GPUs: registers, stack, spills, shared memory; rules
emulator     PTX -> C -> the CPU: launches, with checks of every access (parse, operands, arithmetic, translate, build
             and runtime.c are its parts)
device       a device for host code: memory and launches, on top of the emulator
"""
