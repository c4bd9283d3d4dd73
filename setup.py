"""Builds the kernels: portable C++ files, loaded by ctypes (no Python or torch ABI).

The extensions are optional. Without a compiler the package installs all the same, and `zograd.noise` and
`zograd.quantized` fall back to torch implementations with the same bits, `zograd.kernels` to the same to rounding.
"""

import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# No fused multiply-add anywhere: it would change the last bit (MSVC's /fp:precise already means that).
GNU_FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fno-wrapv"]
# Apple's clang has no OpenMP runtime; there the kernels run on one thread.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]
MSVC_FLAGS = ["/O2", "/std:c++17", "/fp:precise", "/openmp", "/EHsc"]


class BuildKernels(build_ext):
    """Picks the flags once the compiler is known."""

    def build_extension(self, ext):
        msvc = self.compiler.compiler_type == "msvc"
        ext.extra_compile_args = MSVC_FLAGS if msvc else GNU_FLAGS + OPENMP
        ext.extra_link_args = [] if msvc else OPENMP
        super().build_extension(ext)

    def get_export_symbols(self, ext):
        """None for Windows' linker to look for: the sources mark what they export, and are no modules of Python."""
        return ext.export_symbols


class PlatformWheel(bdist_wheel):
    """One wheel of a platform serves every Python: the kernels know nothing of it."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            f"zograd.{part}._native",
            sources=[f"src/zograd/{part}/_native.cpp"],
            depends=["src/zograd/native.h"],
            include_dirs=["src/zograd"],
            language="c++",
            optional=True,
        )
        for part in ("kernels", "noise", "quantized")
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
