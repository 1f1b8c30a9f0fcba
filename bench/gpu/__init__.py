"""The parts of `python -m bench gpu_check`: one file each, with a function `measure(settings, notes)`."""
