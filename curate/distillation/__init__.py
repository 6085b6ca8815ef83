"""Distillation: few synthetic patches that train as well as many real ones."""
