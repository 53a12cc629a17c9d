"""Train language models with MindSpore graph mode and auto-parallel, from one recipe."""

__version__ = "0.1.0"
