"""Builds the noise kernels: one portable C++ file, loaded by ctypes (no Python or torch ABI).

The extension is optional. Without a compiler the package installs all the same and
`zograd.noise` falls back to the torch implementation with the same bits.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "zograd.noise._native",
            sources=["src/zograd/noise/_native.cpp"],
            extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-ffp-contract=off"],
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
    ]
)
