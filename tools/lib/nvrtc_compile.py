#!/usr/bin/env python3
"""Compiles the device code of CUDA files with NVRTC 12 from PyPI: nvrtc_compile.py ARCHS FILE...

ARCHS is like 70,75,90: real machine code is made for each (the compiler's back end sees the inline
PTX too). A file passes when it compiles and, with a `__global__` in it, at least one kernel comes out: a
template that nothing instantiates outside of `#ifndef __CUDACC_RTC__` would not be compiled at all. The C headers come
from here, since NVRTC has none; the host's are not looked at.

Files are compiled side by side, one per core. Prints a line per file and architecture, the compiler's words below it. Exit 1 when one failed, 3
when NVRTC is not there.
"""

import ctypes
import multiprocessing
import os
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

STDINT = "".join(
    f"typedef {'signed' if sign else 'unsigned'} {c} {'' if sign else 'u'}int{bits}_t;\n"
    for bits, c in ((8, "char"), (16, "short"), (32, "int"), (64, "long"))
    for sign in (True, False)
) + """typedef unsigned long uintptr_t;
typedef long intptr_t;
#define INT8_MAX 127
#define INT16_MAX 32767
#define INT32_MAX 2147483647
#define INT32_MIN (-INT32_MAX - 1)
#define INT64_MAX 9223372036854775807L
#define INT64_MIN (-INT64_MAX - 1)
#define UINT8_MAX 255
#define UINT16_MAX 65535
#define UINT32_MAX 4294967295u
#define UINT64_MAX 18446744073709551615ul
#define SIZE_MAX UINT64_MAX
"""
# NVRTC knows size_t, memcpy, memset and the functions of math.h by itself.
HEADERS = {
    "stdint.h": STDINT,
    "stddef.h": "#ifndef NULL\n#define NULL 0\n#endif\n",
    "stdbool.h": "",
    "string.h": "",
    "math.h": "#define INFINITY __int_as_float(0x7f800000)\n#define NAN __int_as_float(0x7fffffff)\n"
              "#define M_PI 3.14159265358979323846\n",
    "float.h": "#define FLT_MAX 3.402823466e+38f\n#define FLT_MIN 1.175494351e-38f\n"
               "#define FLT_EPSILON 1.192092896e-07f\n",
}


class Nvrtc:
    def __init__(self, site: Path) -> None:
        self.include = []
        for name in ("cuda_runtime", "cuda_nvcc", "cuda_cccl"):
            folder = site / "nvidia" / name / "include"
            if folder.is_dir():
                self.include.append(folder)
        folder = site / "nvidia" / "cuda_nvrtc" / "lib"
        # The builtins library is looked for by name: loaded first, it is found.
        for path in sorted(folder.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        path = folder / "libnvrtc.so.12"
        if not path.exists():
            sys.exit(3)
        self.lib = ctypes.CDLL(str(path))
        self.lib.nvrtcGetErrorString.restype = ctypes.c_char_p

    def check(self, rc: int) -> None:
        if rc != 0:
            raise RuntimeError(self.lib.nvrtcGetErrorString(rc).decode())

    def text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self.check(getattr(self.lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self.check(getattr(self.lib, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def version(self) -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.check(self.lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return f"{major.value}.{minor.value}"

    def compile(self, path: Path, arch: str) -> tuple[bool, int, str]:
        """(compiled, kernels in it, the compiler's words)"""
        n = len(HEADERS)
        program = ctypes.c_void_p()
        self.check(self.lib.nvrtcCreateProgram(
            ctypes.byref(program), path.read_bytes(), str(path).encode(), n,
            (ctypes.c_char_p * n)(*[v.encode() for v in HEADERS.values()]),
            (ctypes.c_char_p * n)(*[k.encode() for k in HEADERS])))
        options = [f"--gpu-architecture=sm_{arch}", "-std=c++17", "-default-device",
                   "--pre-include=math.h",  # as nvcc does
                   f"-I{ROOT}/src", f"-I{path.parent}",

                   *(f"-I{folder}" for folder in self.include)]
        rc = self.lib.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*[o.encode() for o in options]))
        words = self.text(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
        kernels = 0
        if rc == 0:
            # A kernel is a section .text.NAME of the ELF file.
            cubin = self.text(program, "CUBIN")
            kernels = len(set(re.findall(rb"\0\.text\.([A-Za-z0-9_$]+)(?=\0)", cubin)))
        self.lib.nvrtcDestroyProgram(ctypes.byref(program))
        return rc == 0, kernels, words


def compile_one(job: tuple[Path, str, str]) -> tuple[str, bool, str]:
    site, name, arch = job
    begin = time.monotonic()
    good, kernels, words = Nvrtc(site).compile(Path(name).resolve(), arch)
    took = time.monotonic() - begin
    words = "\n".join(w for w in words.splitlines() if w and "are deprecated and may be removed" not in w)
    if good and kernels == 0 and "__global__" in Path(name).read_text():
        good, words = False, words + "\nno kernel came out: instantiate the templates outside of " \
            "#ifndef __CUDACC_RTC__"
    return f"{name}: sm_{arch} {'ok' if good else 'FAILED'}, {kernels} kernels, {took:.1f} s", good, words


def main() -> int:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    site = Path(__file__)
    for entry in sys.path:
        if (Path(entry) / "nvidia" / "cuda_nvrtc").is_dir():
            site = Path(entry)
            break
    else:
        print("the package nvidia-cuda-nvrtc-cu12 is not in this Python")
        return 3
    passed = failed = 0
    # The longest first, by size.
    work = [(site, name, arch) for name in sorted(sys.argv[2:], key=os.path.getsize, reverse=True)
            for arch in sys.argv[1].split(",")]
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for line, good, words in pool.imap_unordered(compile_one, work):
            print("\n    ".join([line, *words.splitlines()]), flush=True)
            passed, failed = passed + good, failed + (not good)
    print(f"NVRTC {Nvrtc(site).version()}: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
