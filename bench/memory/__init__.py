"""The memory alone, outside any model: its kernels, its window, and how much it holds."""
