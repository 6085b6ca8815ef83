"""Dual regression compression."""
