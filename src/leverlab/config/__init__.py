"""Typed params: `base` reads them, one module a section holds its keys, defaults and ranges."""
