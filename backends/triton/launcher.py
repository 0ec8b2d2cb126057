"""C for a foreign host, beside the manifest of a kind of GPU: it loads the kernels by the driver, and starts each. It
needs no header: without the driver's own it declares the few functions that it calls. Imports no Triton.
"""

from __future__ import annotations

from sleepc.backends.triton.devices import find_device
from sleepc.backends.triton.manifest import SCRATCH, ArgumentType, KernelFacts

KINDS = {"i32": "int32_t", "fp32": "float"}
DEFAULT_SHARED = 48 << 10
"""Bytes of shared memory that NVIDIA's driver gives without being asked."""
CUDA = """\
#if defined(__has_include) && __has_include(<cuda.h>)
#include <cuda.h>
#else
typedef int CUresult;
typedef unsigned long long CUdeviceptr;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef enum { CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8 } CUfunction_attribute;
CUresult cuModuleLoad(CUmodule *module, const char *path);
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name);
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value);
CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                        unsigned block_z, unsigned shared, CUstream stream, void **arguments, void **extra);
#endif
typedef CUresult result;
typedef CUdeviceptr address;
typedef CUmodule module;
typedef CUfunction function;
typedef CUstream stream;
#define LOAD cuModuleLoad
#define FIND cuModuleGetFunction
#define ALLOW(f, bytes) cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)
#define START cuLaunchKernel
"""
HIP = """\
#if defined(__has_include) && __has_include(<hip/hip_runtime_api.h>)
#define __HIP_PLATFORM_AMD__ 1
#include <hip/hip_runtime_api.h>
#else
typedef int hipError_t;
typedef struct ihipModule_t *hipModule_t;
typedef struct ihipModuleSymbol_t *hipFunction_t;
typedef struct ihipStream_t *hipStream_t;
hipError_t hipModuleLoad(hipModule_t *module, const char *path);
hipError_t hipModuleGetFunction(hipFunction_t *function, hipModule_t module, const char *name);
hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned x, unsigned y, unsigned z, unsigned block_x,
                                 unsigned block_y, unsigned block_z, unsigned shared, hipStream_t stream,
                                 void **arguments, void **extra);
#endif
typedef hipError_t result;
typedef void *address;
typedef hipModule_t module;
typedef hipFunction_t function;
typedef hipStream_t stream;
#define LOAD hipModuleLoad
#define FIND hipModuleGetFunction
#define ALLOW(f, bytes) 0
#define START hipModuleLaunchKernel
"""
HEAD = """\
/* Kernels for {target}: {manifest} has their order, the grids, and the shapes of what they are given.
   This file loads native code. It was compiled, and has not been run.
   load_kernels_{target}(folder) once, in a thread with a context; then start_{target}_NAME(stream, programs,
   arguments). Both return the driver's error, 0 if there is none; the former -1 if the path is too long. Launchers of
   several kinds of GPU can be linked into one host. */
#include <stdint.h>
#include <stdio.h>
"""
LOADING = """
static function loaded[{count}];

static result load_one(const char *folder, const char *file, const char *symbol, int shared, function *found) {{
    char path[4096];
    module code;
    int length = snprintf(path, sizeof path, "%s/%s", folder, file);
    if (length < 0 || (size_t)length >= sizeof path) return (result)-1;
    result error = LOAD(&code, path);
    if (!error) error = FIND(found, code, symbol);
    if (!error && shared > {default}) error = (result)ALLOW(*found, shared);
    return error;
}}

result load_kernels_{target}(const char *folder) {{
    result error = (result)0;
{loads}
    return error;
}}
"""


def launcher(target: str, manifest: str, kernels: dict[str, KernelFacts]) -> str:
    """The text of the file, for kernels of `manifest` by name."""
    head = HEAD.format(target=target, manifest=manifest) + (CUDA if find_device(target).nvidia else HIP)
    loads = "\n".join(
        f'    if (!error) error = load_one(folder, "{it.code}", "{it.symbol}", {it.shared}, &loaded[{at}]);'
        for at, it in enumerate(kernels.values())
    )
    loading = LOADING.format(target=target, count=len(kernels), default=DEFAULT_SHARED, loads=loads)
    return (
        head + loading + "".join(_starter(at, f"{target}_{name}", it) for at, (name, it) in enumerate(kernels.items()))
    )


def _starter(at: int, name: str, it: KernelFacts) -> str:
    given = "".join(f", {_kind(each)}{each.name}" for each in it.arguments)
    listed = ", ".join(f"&{each.name}" for each in it.arguments) + ", &none" * SCRATCH
    return f"""
result start_{name}(stream on, unsigned programs{given}) {{
    address none = 0;
    void *arguments[] = {{{listed}}};
    return START(loaded[{at}], programs, 1, 1, {it.threads}, 1, 1, {it.shared}, on, arguments, NULL);
}}
"""


def _kind(argument: ArgumentType) -> str:
    return f"{KINDS[argument.type]} " if argument.type in KINDS else "address "
