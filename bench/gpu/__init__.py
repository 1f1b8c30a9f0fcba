"""A CUDA device against the CPU: `gpu_check` runs parts, one file each, with a function `measure(settings, notes)`."""
