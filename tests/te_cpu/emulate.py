"""TransformerEngine 2.20.2's own Python on a machine without a GPU.

Its compiled half, `transformer_engine_torch`, is replaced by a module with the three kernels that `te.Linear` calls
(cast, product, transpose) in plain torch; its Python (modules, autograd, recipes, scale updates) runs as it is.
What this shows: names, keywords, shapes, which buffer goes into which product, scales and histories.
What it cannot show: that the CUDA kernels compute the same, or how fast. It patches torch for the whole process.
"""

import enum
import os
import sys
import types
import warnings
from unittest import mock

os.environ |= {
    "NVTE_PROJECT_BUILDING": "1",  # do not load shared libraries
    "NVTE_TORCH_COMPILE": "0",  # its small fused functions stay eager
    "NVTE_UNFUSED_FP8_UPDATE": "1",
}  # scales are updated by its Python, not by a kernel
os.environ.pop("NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE", None)
import torch

# The values are those of transformer_engine_torch; only what is compared or converted to a number needs the right one.
KINDS = {
    "DType": dict(kByte=0, kInt32=2, kFloat32=4, kFloat16=5, kBFloat16=6, kFloat8E4M3=7, kFloat8E5M2=8, kFloat4E2M1=10),
    "FP8FwdTensors": {
        f"GEMM{g}_{t}": 3 * (g - 1) + i for g in (1, 2, 3) for i, t in enumerate(("INPUT", "WEIGHT", "OUTPUT"))
    },
    "FP8BwdTensors": {f"GRAD_{t}{g}": 2 * (g - 1) + i for g in (1, 2, 3) for i, t in enumerate(("OUTPUT", "INPUT"))},
    "NVTE_Fused_Attn_Backend": dict(NVTE_No_Backend=-1, NVTE_F16_arbitrary_seqlen=1, NVTE_FP8=2),
}
FP8 = {7: torch.float8_e4m3fn, 8: torch.float8_e5m2}
products = []  # every product: (layout, format of A, format of B, accumulating)


class Extension(types.ModuleType):
    "The compiled module. An unknown class is a mock (only the import needs it); an unknown function fails when called."

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            value = mock.MagicMock(name=name)
        else:

            def value(*args, **kw):
                raise NotImplementedError(f"transformer_engine_torch.{name} is not emulated")

        setattr(self, name, value)
        return value


def cast_kernel(tensor, quantizer, output=None, noop=None):
    "Scale, saturate, cast; the delayed kind notes the amax with a maximum, as the kernel's atomic does."
    from transformer_engine.pytorch.tensor.float8_tensor import Float8Quantizer, Float8Tensor
    from transformer_engine.pytorch.tensor.storage.float8_tensor_storage import Float8TensorStorage

    x, dtype = tensor.detach().float(), FP8[int(quantizer.dtype)]
    largest, a = torch.finfo(dtype).max, x.abs().max()
    if isinstance(quantizer, Float8Quantizer):
        scale = quantizer.scale
        quantizer.amax.copy_(torch.maximum(quantizer.amax, a))
    else:
        ok = (a > 0) & a.isfinite()
        scale = torch.where(ok, torch.full_like(a, largest) / a, torch.ones_like(a)).clamp(
            max=torch.finfo(torch.float32).max
        )
    data = (x * scale).clamp(-largest, largest).to(dtype).view(torch.uint8)
    turned = transpose_kernel(data, None) if quantizer.columnwise_usage and tn_only() else None
    inverse = (1 / scale).reshape(1)
    assert output is None, "an output buffer means cached weights, which the clean way never has"
    parts = dict(
        data=data, data_transpose=turned, fp8_scale_inv=inverse, fp8_dtype=quantizer.dtype, quantizer=quantizer
    )
    if quantizer.internal:
        return Float8TensorStorage(**parts, fake_dtype=tensor.dtype)
    return Float8Tensor(**parts, shape=tensor.shape, dtype=tensor.dtype, requires_grad=False, device=tensor.device)


def tn_only():
    "Whether this GPU multiplies FP8 only row by row, so that transposes are stored (8.9, 9.0, 12.0)."
    from transformer_engine.pytorch.utils import is_non_tn_fp8_gemm_supported

    return not is_non_tn_fp8_gemm_supported()


def transpose_kernel(data, dtype, out=None):
    return data.reshape(-1, data.shape[-1]).t().contiguous().reshape(data.shape[-1], *data.shape[:-1])


def matrix(t, rows: bool):
    "The FP32 matrix behind an operand, read from the very buffer that the hardware would read."
    if not hasattr(t, "_fp8_dtype"):
        return t.detach().float().reshape(-1, t.shape[-1])
    dtype = FP8[int(t._fp8_dtype)]
    if rows or not tn_only():
        return t._data.view(dtype).float().reshape(-1, t._data.shape[-1]) * t._scale_inv
    assert t._transpose is not None and not t._transpose_invalid, "the product needs a transpose that was not made"
    return (t._transpose.view(dtype).float().reshape(t._transpose.shape[0], -1) * t._scale_inv).t()


def product_kernel(
    A,
    turn_a,
    B,
    turn_b,
    out,
    quantizer,
    out_dtype,
    bias,
    bias_dtype,
    gelu,
    gelu_in,
    grad,
    work,
    work_size,
    accumulate,
    split,
    **kw,
):
    "cuBLAS, column-major: TN is B A^T (forward), NN is B A (gradient of the input), NT is B^T A (of the weight)."
    from transformer_engine.pytorch.constants import TE_DType_To_Torch

    assert quantizer is None and bias is None and out is None and not accumulate and not gelu, (
        "not what the clean way does"
    )
    a, b = matrix(A, turn_a), matrix(B, not turn_b)
    products.append(
        (
            "TN" if turn_a else "NT" if turn_b else "NN",
            int(getattr(A, "_fp8_dtype", 0)),
            int(getattr(B, "_fp8_dtype", 0)),
            accumulate,
        )
    )
    y = (b.t() if turn_b else b) @ (a.t() if turn_a else a)
    if not turn_b:
        y = y.reshape(*(B.size() if hasattr(B, "_fp8_dtype") else B.shape)[:-1], y.shape[-1])
    return y.to(TE_DType_To_Torch[out_dtype] if out_dtype is not None else torch.float32), None, None, None


def install(capability=(12, 0)):
    "Make `import transformer_engine.pytorch` work and believe in a GPU of that compute capability."
    torch.cuda.get_device_capability = lambda *a: capability
    torch.cuda.get_device_properties = lambda *a: types.SimpleNamespace(
        major=capability[0], minor=capability[1], multi_processor_count=170
    )
    torch.version.cuda = "13.0"
    if "transformer_engine_torch" not in sys.modules:
        _pretend()
    import transformer_engine.pytorch.quantization as q

    for name in ("_FP8_SUPPORT", "_MXFP8_SUPPORT", "_NVFP4_SUPPORT", "_FP8_BLOCK_SCALING_SUPPORT"):
        setattr(q, name, None)  # its cached answers
    import transformer_engine.pytorch.utils as utils

    for f in vars(utils).values():
        if hasattr(f, "cache_clear"):
            f.cache_clear()


def _pretend():
    tex = Extension("transformer_engine_torch")
    for name, members in KINDS.items():
        setattr(tex, name, enum.IntEnum(name, members))
    for name in ("CommOverlap", "CommOverlapP2P", "CommOverlapHelper", "CommOverlapCore"):
        setattr(tex, name, type(name, (), {}))
    tex.get_cublasLt_version, tex.get_cudnn_version, tex.get_num_cublas_streams = (
        lambda: 130100,
        lambda: 92400,
        lambda: 4,
    )
    tex.quantize, tex.generic_gemm, tex.fp8_transpose = cast_kernel, product_kernel, transpose_kernel
    sys.modules["transformer_engine_torch"] = tex
    triton = ("", ".mhc", ".pad", ".permutation", ".cross_entropy", ".grouped_dbias_dscales")
    for name in triton:  # a torch for CPUs has no triton
        m = Extension("transformer_engine.pytorch.triton" + name)
        m.__path__ = []
        sys.modules[m.__name__] = m
    cuda, cpu = torch.cuda, torch.device("cpu")
    cuda.is_available, cuda.current_device, cuda.synchronize = lambda: True, lambda: cpu, lambda *a: None
    cuda.is_current_stream_capturing = lambda: False
    torch.Tensor.is_cuda, torch.Tensor.cuda = True, lambda self, *a, **k: self
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformer_engine.common as common

        common.load_framework_extension = lambda *a, **k: None
        from transformer_engine.pytorch import quantization
    create = quantization.RecipeState.create
    quantization.RecipeState.create = staticmethod(
        lambda recipe, *, device=None, **kw: create(recipe, device=device or cpu, **kw)
    )
