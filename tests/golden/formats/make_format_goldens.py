"""Reference values for reading quantised weights: GGUF blocks, bitsandbytes, ComfyUI's scaled formats, aredden's fp8.

    python make_format_goldens.py OUT_DIR

Writes `ggml`, `encode`, `bnb`, `comfy`, `comfy_header`, `w4a8` and `aredden` (.safetensors), `city96`, `sdcpp` and `t5` (.gguf, each with a .json) and
`README.md` into OUT_DIR. The values come from the packages gguf, bitsandbytes and comfy-kitchen on the CPU; where a definition is at hand, a second
computation in numpy must agree bit for bit. Needs numpy, torch, safetensors, gguf, bitsandbytes and comfy-kitchen; no network, no download.
"""
import json
import math
import os
import platform
import sys
from importlib.metadata import version

import bitsandbytes.backends.default.ops as bnb_plain
import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from bitsandbytes.utils import pack_dict_to_tensor
from comfy_kitchen.backends.eager import quantization as kitchen
from comfy_kitchen.backends.eager import w4a8_int8 as w4a8
from safetensors.torch import save_file

torch.set_grad_enabled(False)
torch.set_num_threads(1)

T = gguf.GGMLQuantizationType
TYPES = 'F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K'.split()
ENCODABLE = 'F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0'.split()
HALVES = dict(Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0], Q2_K=[80, 82], Q3_K=[108], Q4_K=[0, 2], Q5_K=[0, 2], Q6_K=[208])
EDGES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xBC00, 0x3555, 0x7BFF, 0xFBFF]  # 0, subnormal, 1, 65504


def rng(*key):
    """A generator of its own for each case, so that changing one case leaves the others' bytes alone."""
    return np.random.default_rng([ord(c) for c in '/'.join(map(str, key))])


def same(a, b, what):
    """Two float32 arrays agree in every bit, the sign of a zero aside."""
    a, b = np.asarray(a, np.float32) + np.float32(0), np.asarray(b, np.float32) + np.float32(0)
    assert a.shape == b.shape and np.isfinite(a).all() and np.array_equal(a.view(np.uint32), b.view(np.uint32)), what


def tensor(a):
    return torch.from_numpy(np.ascontiguousarray(a))


# ---------------------------------------------------------------------------------------------------------------- GGUF blocks

def halves(r, n):
    """n finite f16 bit patterns: the edge cases first, then any."""
    bits = r.integers(0, 1 << 16, n).astype(np.uint16)
    bits = np.where(bits & 0x7C00 == 0x7C00, bits ^ 0x4000, bits).astype(np.uint16)
    bits[:min(n, len(EDGES))] = EDGES[:n]
    return r.permutation(bits)


def block_bytes(r, kind, rows, cols, scale=None):
    """Random bytes of a rows x cols matrix; with `scale`, the blocks' f16 fields are small ordinary numbers instead of any finite one."""
    if kind == 'F32':
        return r.standard_normal((rows, cols), dtype=np.float32).view(np.uint8)
    if kind in ('F16', 'BF16'):
        if scale is not None:
            return gguf.quants.quantize(r.standard_normal((rows, cols), dtype=np.float32), T[kind]).view(np.uint8)
        bits = r.integers(0, 1 << 16, rows * cols).astype(np.uint16)
        inf = 0x7C00 if kind == 'F16' else 0x7F80
        bits = np.where(bits & inf == inf, bits ^ 0x4000, bits).astype(np.uint16)
        bits[:4] = [0, 0x8000, 1, 0x8001]
        return bits.reshape(rows, cols).view(np.uint8)
    values, size = gguf.GGML_QUANT_SIZES[T[kind]]
    n = rows * cols // values
    blocks = r.integers(0, 256, (n, size)).astype(np.uint8)
    for at in HALVES[kind]:
        bits = halves(r, n) if scale is None else (scale * r.uniform(0.5, 1.5, n)).astype(np.float16).view(np.uint16)
        blocks[:, at:at + 2] = bits[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def by_definition(kind, data, cols):
    """The legacy types once more, value by value."""
    values, size = gguf.GGML_QUANT_SIZES[T[kind]]
    out = []
    for b in data.reshape(-1, size):
        d = b[:2].view(np.float16)[0].astype(np.float32)
        if kind == 'Q8_0':
            out.append(d * b[2:].view(np.int8).astype(np.float32))
            continue
        b = b[2:]
        m = np.float32(0)
        if kind in ('Q4_1', 'Q5_1'):
            m, b = b[:2].view(np.float16)[0].astype(np.float32), b[2:]
        high = np.zeros(32, np.uint8)
        if kind in ('Q5_0', 'Q5_1'):
            high, b = np.unpackbits(b[:4], bitorder='little'), b[4:]
        q = (np.concatenate([b & 15, b >> 4]) | high << 4).astype(np.float32)
        q -= dict(Q4_0=8, Q5_0=16).get(kind, 0)
        out.append(d * q + m)
    return np.concatenate(out).reshape(-1, cols)


def ggml_goldens(folder):
    out = {}
    for kind in TYPES:
        rows, cols = 8 if kind.endswith('_K') else 4, 768
        data = block_bytes(rng('ggml', kind), kind, rows, cols)
        values = gguf.quants.dequantize(data, T[kind])
        assert values.shape == (rows, cols) and np.isfinite(values).all()
        if kind in ('Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0'):
            same(values, by_definition(kind, data, cols), kind)
        out[f'{kind}.bytes'], out[f'{kind}.values'] = tensor(data), tensor(values)
    save(folder, 'ggml', out)


def encode_goldens(folder):
    """What gguf's encoders make of one matrix."""
    r = rng('encode')
    x = r.standard_normal((8, 512), dtype=np.float32)
    x[1] *= np.float32(1e-3)
    x[2] *= np.float32(3e3)
    block = x.reshape(-1, 32)
    block[0] = 0
    block[1] = -0.0
    block[2, 5:] = 0  # few values
    block[3] = np.float32(0.7)
    block[4] = np.float32(-0.7)
    block[5] = np.arange(32, dtype=np.float32) - 16  # both signs, the largest magnitude negative
    block[6] = (np.arange(32, dtype=np.float32) - 15.5) / 127  # halfway cases
    block[7] = np.float32(127)
    block[7, ::2] = np.arange(16, dtype=np.float32) + np.float32(0.5)  # ties: d = 1
    block[8] = -block[7]
    block[9] *= np.float32(1e-4)  # the scale is subnormal in f16
    block[10] *= np.float32(1e-12)  # the scale is zero in f16, though not in f32
    block[11] = np.arange(32, dtype=np.float32) * np.float32(2.0**-20) + np.float32(1)  # min and max nearly equal
    out = {'source': tensor(x)}
    for kind in ENCODABLE:
        out[f'{kind}.bytes'] = tensor(gguf.quants.quantize(x.copy(), T[kind]).view(np.uint8))
    save(folder, 'encode', out)


# ---------------------------------------------------------------------------------------------------------------- bitsandbytes

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
       0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0]
FP4 = [0, 0.0625, 8, 12, 4, 6, 2, 3]


def table(kind):
    return np.array(NF4, np.float32) if kind == 'nf4' else np.array(FP4 + [-v for v in FP4], np.float32) / np.float32(12)


def bnb_goldens(folder):
    """CASE.weight and what hangs on it as bitsandbytes saves it; CASE.expected from its dequantisation into float32 (the one in plain torch: the
    CPU kernel of 0.50.2 gives wrong values where rows are not whole blocks; where they are, the two must agree)."""
    cases = dict(
        nf4=dict(shape=(48, 128)),
        nf4_nested=dict(shape=(72, 256), nested=True),  # 288 blocks: two blocks of scales, the second short
        nf4_crossing=dict(shape=(34, 90)),  # blocks run over the ends of rows, the last is short
        nf4_odd=dict(shape=(33, 35)),  # half a byte left over
        nf4_128=dict(shape=(16, 192), blocksize=128, dtype=torch.float16),
        nf4_as_bf16=dict(shape=(16, 64), storage=torch.bfloat16),  # the bytes in a bfloat16 tensor
        nf4_any=dict(shape=(24, 128), fill=True),  # every byte, scales of 0 and far apart
        nf4_any_nested=dict(shape=(144, 128), fill=True, nested=True),
        fp4=dict(shape=(32, 96), kind='fp4'),
        fp4_any_nested=dict(shape=(48, 96), kind='fp4', fill=True, nested=True))
    out = {}
    for name, c in cases.items():
        r, kind, blocksize, nested = rng('bnb', name), c.get('kind', 'nf4'), c.get('blocksize', 64), c.get('nested', False)
        shape = c['shape']
        w = torch.from_numpy(r.standard_normal(shape, dtype=np.float32) * np.float32(0.05)).to(c.get('dtype', torch.bfloat16))
        w[:, :shape[1] // 3] *= 8
        storage = c.get('storage', torch.uint8)
        q, state = bnb.quantize_4bit(w, blocksize=blocksize, compress_statistics=nested, quant_type=kind, quant_storage=storage)
        if c.get('fill'):
            q = tensor(r.permutation(np.resize(np.arange(256, dtype=np.uint8), q.numel())).reshape(q.shape))
            if nested:
                state.absmax = tensor(r.permutation(np.resize(np.arange(256, dtype=np.uint8), state.absmax.numel())))
            else:
                state.absmax = tensor(np.exp(r.uniform(-40, 40, state.absmax.numel())).astype(np.float32))
                state.absmax[:2] = 0
        stored = {k: v.clone() for k, v in state.as_dict(packed=True).items()}
        out[f'{name}.weight'] = q
        out |= {f'{name}.weight.{k}': v for k, v in stored.items()}

        state.dtype = torch.float32
        packed = q.contiguous().view(torch.uint8).reshape(-1)
        scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset if nested else state.absmax
        expected = bnb_plain._dequantize_4bit_compute.__wrapped__(packed, scales, state.code, blocksize, shape, torch.float32)
        if shape[1] % blocksize == 0:
            same(bnb.dequantize_4bit(q, state).numpy(), expected.numpy(), name)
        packed = packed.numpy()
        codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1)[:w.numel()]
        absmax = stored['absmax'].numpy()
        if nested:
            scale = stored['nested_quant_map'].numpy()[absmax] * np.repeat(stored['nested_absmax'].numpy(), state.state2.blocksize)[:absmax.size]
            absmax = scale + np.float32(state.offset.item())
        assert np.array_equal(table(kind), stored['quant_map'].numpy())
        same(expected.numpy(), (table(kind)[codes] * np.repeat(absmax, blocksize)[:w.numel()]).reshape(shape), name)
        out[f'{name}.expected'] = expected
    save(folder, 'bnb', out)


# ---------------------------------------------------------------------------------------------------------------- ComfyUI's scaled formats

def unswizzle(scale, rows, cols):
    """Bytes of a rows x cols matrix of scales out of tiles of 128 x 4."""
    flat = scale.contiguous().view(torch.uint8).numpy().reshape(-1)
    r, c = np.meshgrid(np.arange(rows), np.arange(cols), indexing='ij')
    return flat[(r // 128 * -(-cols // 4) + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4]


def swizzle(scale):
    return kitchen.to_blocked(tensor(scale), flatten=False)


def f8(a, kind=torch.float8_e4m3fn):
    return (a if isinstance(a, torch.Tensor) else tensor(a)).view(kind)


def f8_bytes(r, shape):
    """Every e4m3 byte but the two NaNs."""
    n = math.prod(shape)
    return r.permutation(np.resize(np.delete(np.arange(256), [127, 255]).astype(np.uint8), n)).reshape(shape)


def matrix(r, shape):
    """Normal values with a row, a block and a column out of the ordinary."""
    x = r.standard_normal(shape, dtype=np.float32) * np.float32(0.04)
    x[1] = 0
    x[2, 64:] = 0
    x[3] *= np.float32(1e-4)
    x[:, 5] *= 20
    return torch.from_numpy(x).to(torch.bfloat16).float()


def mxfp8(weight, scale, shape):
    rows, cols = weight.shape
    bytes_ = unswizzle(scale, rows, cols // 32)
    factor = np.where(bytes_ == 0, 0, np.ldexp(np.float64(1), bytes_.astype(np.int32) - 127)).astype(np.float32)
    mine = weight.float().numpy() * np.repeat(factor, 32, 1)
    same(kitchen.dequantize_mxfp8(weight, f8(scale, torch.float8_e8m0fnu), torch.float32).numpy(), mine, 'mxfp8')
    return tensor(mine[:shape[0], :shape[1]])


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def nvfp4(weight, scale, scale2, shape):
    rows, cols = weight.shape[0], weight.shape[1] * 2
    packed = weight.numpy()
    codes = np.stack([packed >> 4, packed & 15], 2).reshape(rows, cols)
    blocks = f8(unswizzle(scale, rows, cols // 16)).float().numpy()
    mine = np.concatenate([E2M1, -E2M1])[codes] * np.repeat(scale2.numpy() * blocks, 16, 1)
    same(kitchen.dequantize_nvfp4(weight, scale2, f8(scale), torch.float32).numpy(), mine, 'nvfp4')
    return tensor(mine[:shape[0], :shape[1]])


def hadamard(size):
    """The regular Hadamard matrix of entries 1 and -1; size is a power of 4."""
    h4 = np.ones((4, 4), np.int64) - 2 * np.eye(4, dtype=np.int64)[::-1]
    return h4 if size == 4 else np.kron(hadamard(size // 4), h4)


def convrot(q, scale, group):
    """The rotation undone on the integers, where every sum is exact, then one multiplication by the row's scale."""
    h, n = hadamard(group), q.shape[1] // group
    turned = (q.numpy().astype(np.int64).reshape(-1, n, group) @ h).reshape(q.shape)
    mine = (turned / math.isqrt(group)).astype(np.float32) * scale.reshape(-1, 1).numpy()
    theirs = kitchen.dequantize_int8_convrot_weight(q, scale.reshape(-1, 1), group).numpy()
    assert np.abs(mine - theirs).max() <= 2e-6 * np.abs(mine).max(), np.abs(mine - theirs).max()
    return tensor(mine)


def comfy_cases():
    """CASE -> (tensors by suffix, what `comfy_quant` holds)."""
    one = lambda v, *shape: torch.full(shape, v, dtype=torch.float32)
    cases = {}

    def add(name, conf, weight, expected, **more):
        cases[name] = (dict(weight=weight, expected=expected, **more), conf)

    for name, kind, scale, conf in [
            ('fp8', torch.float8_e4m3fn, one(0.0123456), dict(format='float8_e4m3fn')),
            ('fp8_precise', torch.float8_e4m3fn, one(3.3e-4, 1), dict(format='float8_e4m3fn', full_precision_matrix_mult=True)),
            ('fp8_e5m2', torch.float8_e5m2, one(1.7e-5), dict(format='float8_e5m2'))]:
        data = f8_bytes(rng('comfy', name), (8, 64))
        data = np.where(data & 0x7C == 0x7C, data & 0x83, data).astype(np.uint8) if kind == torch.float8_e5m2 else data
        w = f8(data, kind)
        add(name, conf, w, w.float() * scale, weight_scale=scale, input_scale=one(0.05))
        same(cases[name][0]['expected'].numpy(), kitchen.dequantize_per_tensor_fp8(w, scale, torch.float32).numpy(), name)

    # mxfp8: quantised, 136 rows stored as 160, 6 blocks of scales stored as 8; 5 blocks stored as 8; all codes, scales as bare bytes
    conf = dict(format='mxfp8')
    for name, shape in dict(mxfp8=(136, 192), mxfp8_wide=(32, 160)).items():
        x = matrix(rng('comfy', name), shape)
        w, s = kitchen.quantize_mxfp8(x, pad_32x=True)
        e = mxfp8(w, s, shape)
        assert (e - x).abs().max() < 0.05 * x.abs().max()
        add(name, conf, w, e, weight_scale=s)
    r = rng('comfy', 'mxfp8_u8')
    scale = r.integers(90, 160, (160, 2)).astype(np.uint8)
    scale[0], scale[1] = [8, 1], [240, 127]
    w = f8(f8_bytes(r, (160, 64)))
    add('mxfp8_u8', conf, w, mxfp8(w, swizzle(scale), (160, 64)), weight_scale=swizzle(scale))

    # nvfp4: likewise; 40 x 72 is stored as 48 x 80
    conf = dict(format='nvfp4')
    for name, shape in dict(nvfp4=(136, 192), nvfp4_padded=(40, 72)).items():
        x = matrix(rng('comfy', name), shape)
        s2 = x.abs().amax() / (448 * 6)
        w, s = kitchen.quantize_nvfp4(x, s2, pad_16x=True)
        e = nvfp4(w, s, s2, shape)
        assert (e - x).abs().max() < 0.2 * x.abs().max()
        add(name, conf, w, e, weight_scale=s, weight_scale_2=s2, input_scale=one(0.0021))
    r = rng('comfy', 'nvfp4_u8')
    scale = r.integers(0, 127, (32, 8)).astype(np.uint8)  # 0, the subnormal ones and up to 448
    w = tensor(r.permutation(np.resize(np.arange(256, dtype=np.uint8), 32 * 64)).reshape(32, 64))
    e = nvfp4(w, swizzle(scale), one(7.7e-4), (32, 128))
    add('nvfp4_u8', conf, w, e, weight_scale=swizzle(scale), weight_scale_2=one(7.7e-4))
    x = matrix(rng('comfy', 'nvfp4_smooth'), (16, 80))
    s2 = x.abs().amax() / (448 * 6)
    w, s = kitchen.quantize_nvfp4(x, s2)
    smooth = torch.from_numpy(rng('comfy', 'smooth').uniform(0.5, 2, 80).astype(np.float32)).to(torch.bfloat16)
    add('nvfp4_smooth', conf, w, nvfp4(w, s, s2, (16, 80)) * smooth.float(), weight_scale=s, weight_scale_2=s2, pre_quant_scale=smooth)

    # int8: one scale, a scale a row in both shapes, rotated in three group sizes
    conf = dict(format='int8_tensorwise')
    x = matrix(rng('comfy', 'int8'), (24, 96))
    q, s = kitchen.quantize_int8_tensorwise(x)
    q[0, :2] = tensor(np.array([-128, 127], np.int8))
    add('int8', conf, q, tensor(q.numpy().astype(np.float32) * s.numpy()), weight_scale=s)
    same(cases['int8'][0]['expected'].numpy(), kitchen.dequantize_int8_simple(q, s).numpy(), 'int8')
    q, s = kitchen.quantize_int8_rowwise(x)
    e = kitchen.dequantize_int8_simple(q, s)
    same(e.numpy(), q.numpy().astype(np.float32) * s.numpy(), 'int8 rows')
    add('int8_rows', conf, q, e, weight_scale=s)
    add('int8_rows_flat', conf, q, e, weight_scale=s.reshape(-1))
    for name, shape, group, more in [
            ('int8_rotated', (20, 512), 256, dict(convrot=True, convrot_groupsize=256)),
            ('int8_rotated_64', (8, 192), 64, dict(params=dict(convrot=True, convrot_groupsize=64))),
            ('int8_rotated_default', (6, 256), 256, dict(convrot=True)),
            ('int8_rotated_16', (6, 48), 16, dict(convrot=True, convrot_groupsize=16))]:
        x = torch.from_numpy(rng('comfy', name).standard_normal(shape, dtype=np.float32))
        q, s = kitchen.quantize_int8_convrot_weight(x, group)
        e = convrot(q, s, group)
        assert (e - x).abs().max() < 0.1
        add(name, conf | more, q, e, weight_scale=s)
    return cases


def comfy_goldens(folder):
    cases = comfy_cases()
    out = {}
    for name, (tensors, conf) in cases.items():
        out |= {f'{name}.{k}': v for k, v in tensors.items()} | {f'{name}.comfy_quant': pack_dict_to_tensor(conf)}
    save(folder, 'comfy', out)
    picked = [n for n in ('fp8', 'mxfp8_wide', 'nvfp4_padded', 'int8_rows', 'int8_rotated_64')]
    out = {f'model.diffusion_model.{n}.{k}': v for n in picked for k, v in cases[n][0].items()}
    layers = {f'model.diffusion_model.{n}': cases[n][1] for n in picked}
    save(folder, 'comfy_header', out, _quantization_metadata=json.dumps(dict(format_version='1.0', layers=layers)))


def w4a8_goldens(folder):
    """4-bit codes for products in int8: the integers of comfy-kitchen, and the values with the rotation undone exactly."""
    book = w4a8._fit_codebook(torch.from_numpy(rng('w4a8', 'book').standard_normal(4096, dtype=np.float32)).clamp(-3, 3) / 3)
    out = {}
    for name, shape, rotation, size, more in [
            ('plain', (20, 512), 256, 16, {}),
            ('wide', (6, 192), 64, 32, dict(scale_dtype=torch.float32)),
            ('default', (6, 256), 256, 16, {}),
            ('fine', (2, 64), 16, 8, {}), ('six', (2, 64), 64, 16, dict(bits=6)), ('offsets', (2, 64), 64, 16, dict(symmetric=False)),
            ('uniform', (2, 64), 64, 16, dict(codebook=False)), ('own', (2, 64), 64, 16, dict(codebook_tensor=book))]:
        x = torch.from_numpy(rng('w4a8', name).standard_normal(shape, dtype=np.float32))
        q, relative, channel, correction, levels = w4a8.quantize_w4a8_int8_weight(x, size, rotation, **more)
        conf = dict(format='asym_w4a8_int8') | (dict(group_size=size, convrot_groupsize=rotation) if name != 'default' else {})
        given = dict(weight=q, weight_s_rel=relative, weight_s_channel=channel, weight_correction=correction, weight_codebook=levels)
        out |= {f'{name}.{k}': v for k, v in given.items() if v is not None} | {f'{name}.comfy_quant': pack_dict_to_tensor(conf)}
        if name in ('plain', 'wide', 'default'):
            integers = w4a8._dequant_int4_grouped_to_int8(q, relative, levels, size)
            e = convrot(integers, channel, rotation)
            assert (e - x).norm() / x.norm() < 0.08
            out |= {f'{name}.integers': integers, f'{name}.expected': e}
    save(folder, 'w4a8', out)


# ---------------------------------------------------------------------------------------------------------------- aredden's fp8

def aredden_goldens(folder):
    """By the definition of F8Linear: a weight times `scale`, saturated, as e4m3; read back as data times `scale_reciprocal`."""
    out = {}
    layers = {'double_blocks.0.img_attn.qkv': (48, 0.04, True), 'double_blocks.0.img_mod.lin': (24, 3.0, True), 'txt_in': (16, 0.3, False),
              'single_blocks.0.linear1': (24, 1e-4, True), 'guidance_in.out_layer': (8, 900.0, False)}
    for name, (rows, size, calibrated) in layers.items():
        r = rng('aredden', name)
        w = torch.from_numpy(r.standard_normal((rows, 64), dtype=np.float32) * np.float32(size)).to(torch.bfloat16)
        amax = w.abs().max().float()
        scale = (448 / amax.clamp(min=1e-12)).clamp(max=448)
        data = (w * scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        reciprocal = scale.reciprocal()
        out |= {f'{name}.float8_data': data, f'{name}.scale': scale, f'{name}.scale_reciprocal': reciprocal,
                f'{name}.weight': torch.zeros(1, dtype=torch.bfloat16),
                f'{name}.bias': torch.from_numpy(r.standard_normal(rows, dtype=np.float32)).to(torch.bfloat16)}
        if calibrated:
            given = torch.tensor(57344 / 11.5)
            out |= {f'{name}.input_scale': given, f'{name}.input_scale_reciprocal': given.reciprocal()}
        out[f'{name}.expected'] = data.float() * reciprocal
        same(out[f'{name}.expected'].numpy(), data.float().numpy() * (np.float32(1) / scale.numpy()), name)
    r = rng('aredden', 'plain')
    plain = {'double_blocks.0.img_attn.norm.query_norm.scale': (8,), 'final_layer.linear.weight': (8, 64), 'final_layer.linear.bias': (8,)}
    out |= {k: torch.from_numpy(r.standard_normal(s, dtype=np.float32)).to(torch.bfloat16) for k, s in plain.items()}
    save(folder, 'aredden', out)


# ---------------------------------------------------------------------------------------------------------------- whole GGUF files

def write_gguf(folder, name, arch, keys, tensors):
    """tensors: name -> (type, logical shape[, stored shape]), as torch orders axes."""
    path = os.path.join(folder, name + '.gguf')
    writer = gguf.GGUFWriter(path, arch or 'none')
    if arch is None:
        writer.kv_data[0].clear()
    keys(writer)
    for key, (kind, shape, *stored) in tensors.items():
        stored = stored[0] if stored else shape
        rows, cols = math.prod(stored[:-1]), stored[-1]
        data = block_bytes(rng(name, key), kind, rows, cols, 0.01)
        if kind == 'F32':
            writer.add_tensor(key, data.view(np.float32).reshape(stored))
        elif kind == 'F16':
            writer.add_tensor(key, data.view(np.float16).reshape(stored))
        else:
            writer.add_tensor(key, data.reshape(*stored[:-1], -1), raw_dtype=T[kind])
        if stored != shape:
            writer.add_array(f'comfy.gguf.orig_shape.{key}', list(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    reader = gguf.GGUFReader(path)
    own = ('GGUF.version', 'GGUF.tensor_count', 'GGUF.kv_count')
    facts = dict(metadata={k: v.contents() for k, v in reader.fields.items() if k not in own}, tensors=[])
    assert len(reader.tensors) == len(tensors) and (arch is not None or not facts['metadata'])
    for t in reader.tensors:
        kind, shape, *stored = tensors[t.name]
        values = gguf.quants.dequantize(np.ascontiguousarray(t.data).view(np.uint8), t.tensor_type)
        assert t.tensor_type == T[kind] and values.size == math.prod(shape) and np.isfinite(values).all()
        assert [int(n) for n in reversed(t.shape)] == list(stored[0] if stored else shape), t.name
        fact = dict(name=t.name, type=kind, shape=shape) | (dict(stored=stored[0]) if stored else {})
        facts['tensors'].append(fact | dict(sum=math.fsum(values.reshape(-1).astype(np.float64).tolist())))
    with open(os.path.join(folder, name + '.json'), 'w') as f:
        body = ',\n'.join(json.dumps(t) for t in facts['tensors'])
        f.write(f'{{"metadata": {json.dumps(facts["metadata"])},\n"tensors": [\n{body}\n]}}\n')
    print(name, os.path.getsize(path), len(tensors))


def gguf_goldens(folder):
    def flux(w):
        w.add_quantization_version(2)
        w.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)

    write_gguf(folder, 'city96', 'flux', flux, {
        'img_in.weight': ('F32', (8, 64), (2, 256)),
        'img_in.bias': ('F32', (8,)),
        'time_in.in_layer.weight': ('F32', (3, 64)),
        'time_in.out_layer.weight': ('F16', (3, 32)),
        'guidance_in.in_layer.weight': ('BF16', (3, 17)),
        'txt_in.weight': ('F16', (5, 24)),
        'double_blocks.0.img_mod.lin.weight': ('Q6_K', (3, 256)),
        'double_blocks.0.img_attn.qkv.weight': ('Q4_K', (6, 256)),
        'double_blocks.0.img_attn.qkv.bias': ('F32', (6,)),
        'double_blocks.0.img_attn.norm.query_norm.scale': ('F32', (16,)),
        'double_blocks.0.img_attn.proj.weight': ('Q5_K', (2, 512)),
        'double_blocks.0.txt_attn.qkv.weight': ('Q3_K', (3, 256)),
        'double_blocks.0.img_mlp.0.weight': ('Q8_0', (3, 96)),
        'double_blocks.0.img_mlp.2.weight': ('Q5_1', (3, 32)),
        'single_blocks.0.linear1.weight': ('Q2_K', (3, 256)),
        'single_blocks.0.linear2.weight': ('Q4_0', (3, 64)),
        'single_blocks.0.modulation.lin.weight': ('Q4_1', (3, 64)),
        'final_layer.adaLN_modulation.1.weight': ('Q5_0', (3, 96)),
        'final_layer.linear.weight': ('F32', (4, 16)),
    })
    write_gguf(folder, 'sdcpp', None, lambda w: None, {
        'model.diffusion_model.img_in.weight': ('BF16', (8, 16)),
        'model.diffusion_model.img_in.bias': ('F32', (8,)),
        'model.diffusion_model.double_blocks.0.img_attn.qkv.weight': ('Q8_0', (6, 64)),
        'model.diffusion_model.double_blocks.0.img_attn.qkv.bias': ('BF16', (6,)),
        'model.diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale': ('F16', (16,)),
        'model.diffusion_model.single_blocks.0.linear1.weight': ('Q4_0', (4, 64)),
        'model.diffusion_model.final_layer.linear.weight': ('F16', (4, 16)),
        'first_stage_model.decoder.conv_in.weight': ('F16', (4, 2, 3, 3)),
        'first_stage_model.decoder.conv_in.bias': ('F32', (4,)),
        'first_stage_model.decoder.mid.attn_1.q.weight': ('F16', (4, 4, 1, 1)),
        'text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight': ('F16', (10, 8)),
        'text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight': ('Q8_0', (4, 32)),
        'text_encoders.t5xxl.transformer.shared.weight': ('Q8_0', (6, 32)),
        'text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight': ('Q8_0', (4, 32)),
        'text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight': ('F16', (32, 2)),
    })

    def t5(w):
        w.add_name('T5 small enough')
        w.add_context_length(512)
        w.add_embedding_length(256)
        w.add_feed_forward_length(512)
        w.add_block_count(2)
        w.add_head_count(4)
        w.add_key_length(64)
        w.add_value_length(64)
        w.add_layer_norm_eps(1e-6)
        w.add_relative_attn_buckets_count(32)
        w.add_file_type(gguf.LlamaFileType.MOSTLY_Q5_K_M)
        w.add_tokenizer_model('t5')
        w.add_token_list(['<pad>', '</s>', '<unk>', '\u2581', 'X', '\u2581caf\u00e9'])
        w.add_token_scores([0.0, 0.0, 0.0, -2.01, -2.56, -9.5])
        w.add_token_types([3, 3, 2, 1, 1, 1])
        w.add_add_space_prefix(True)
        w.add_eos_token_id(1)
        w.add_pad_token_id(0)

    tensors = {'token_embd.weight': ('Q6_K', (6, 256)), 'enc.output_norm.weight': ('F32', (256,))}
    for i in range(2):
        b = f'enc.blk.{i}.'
        tensors |= {b + 'attn_norm.weight': ('F32', (256,)), b + 'attn_q.weight': ('Q5_K', (4, 256)), b + 'attn_k.weight': ('Q5_K', (4, 256)),
                    b + 'attn_v.weight': ('Q6_K', (4, 256)), b + 'attn_o.weight': ('Q8_0', (8, 64)), b + 'ffn_norm.weight': ('F32', (256,)),
                    b + 'ffn_gate.weight': ('Q4_K', (3, 256)), b + 'ffn_up.weight': ('Q4_K', (3, 256)), b + 'ffn_down.weight': ('Q3_K', (2, 512))}
        if i == 0:
            tensors[b + 'attn_rel_b.weight'] = ('F16', (32, 4))
    write_gguf(folder, 't5', 't5encoder', t5, tensors)


# ---------------------------------------------------------------------------------------------------------------- writing

def save(folder, name, tensors, **meta):
    path = os.path.join(folder, name + '.safetensors')
    tensors = {k: v.clone().contiguous() for k, v in tensors.items()}
    for k, v in tensors.items():
        assert not k.endswith(('.expected', '.values')) or (v.dtype == torch.float32 and v.isfinite().all()), k
    save_file(tensors, path, metadata=meta or None)
    os.chmod(path, 0o644)
    print(name, os.path.getsize(path), len(tensors))


README = '''# Reference values for stored formats
Made by `python make_format_goldens.py OUT_DIR` with {versions}. Nothing here is needed to build or to run; the tests read it.
All values are float32, and every one is determined to the bit: the order of the operations is given below, each rounds once, none are fused.
Zeros may differ in sign.

| file | tensors | |
|---|---|---|
| `ggml` | `TYPE.bytes` U8 (rows, bytes a row), `TYPE.values` (8 or 4, 768) | random blocks through `gguf.quants.dequantize`; any finite f16 as scale: 0, -0, subnormal, negative, 65504. The five legacy types were also computed from their definition. Products are exact in f32, so fused or not makes no difference |
| `encode` | `source` (8, 512), `TYPE.bytes` | `gguf.quants.quantize` of one matrix; Q8_0 is what ggml writes. Blocks of zeros, ties, a scale subnormal or zero in f16 |
| `bnb` | `CASE.weight`, `CASE.weight.absmax`, ... as bitsandbytes saves them, `CASE.expected` | dequantised by bitsandbytes' plain torch code into float32 (its CPU kernel errs where rows are not whole blocks), where it rounds nowhere but here: nested scales `round(round(map x absmax) + offset)`, then `code x scale`. `any`: all byte values, not from a real matrix; `odd`: half a byte unused; `as_bf16`: bytes in a BF16 tensor |
| `comfy` | `CASE.weight`, `.weight_scale`, ..., `.comfy_quant`, `CASE.expected` | from comfy-kitchen's eager code and again from the definition, bit for bit alike. `expected` has the layer's own shape, smaller than what is stored where that is padded (`mxfp8`, `nvfp4`, `nvfp4_padded`). `u8`: scales as bare bytes. nvfp4: `code x round(scale_2 x scale)`. `smooth`: the columns times `pre_quant_scale`, one rounding more. An mxfp8 scale byte of 0 occurs with zeros only |
| | `int8_rotated...` | the rotation undone on the integers (exact), divided by the root of the group size (exact), times the row's scale; comfy-kitchen sums in f32 and is within 2e-6 of the largest value |
| `comfy_header` | five of those under `model.diffusion_model.` | formats in the header's `_quantization_metadata`, no `comfy_quant` |
| `w4a8` | `CASE.weight`, `.weight_s_rel`, `.weight_s_channel`, `.weight_codebook`, `.comfy_quant`, `.integers`, `CASE.expected` | comfy-kitchen's `asym_w4a8_int8`: the integers that its codes stand for, and these with the rotation undone as for `int8_rotated`. `fine`, `six`, `offsets`, `uniform` and `own` are forms that are refused |
| `aredden` | `LAYER.float8_data`, `.scale`, `.scale_reciprocal`, `.weight` (one zero), ..., `LAYER.expected` | made here by that project's rule, not by its code: `data x scale_reciprocal`. Two layers have no `input_scale`; `query_norm.scale` and `final_layer` are plain |

`city96.gguf` (architecture `flux`, BFL names; `img_in.weight` is stored as (2, 256), its shape in `comfy.gguf.orig_shape.img_in.weight`),
`sdcpp.gguf` (no metadata at all; prefixes; a 4-D convolution), `t5.gguf` (llama.cpp's names): toy sizes, made with `gguf.GGUFWriter`.
The `.json` beside each: `metadata`, and of each tensor the name, type, shape (as torch orders it, columns last; `stored`: in the file where that differs) and the
correctly rounded f64 sum of its f32 values.
'''


def main(folder):
    os.makedirs(folder, exist_ok=True)
    for make in (ggml_goldens, encode_goldens, bnb_goldens, comfy_goldens, w4a8_goldens, aredden_goldens, gguf_goldens):
        make(folder)
    names = ('gguf', 'bitsandbytes', 'comfy-kitchen', 'torch', 'safetensors', 'numpy')
    versions = ', '.join([f'{n} {version(n)}' for n in names] + [f'python {platform.python_version()}'])
    with open(os.path.join(folder, 'README.md'), 'w') as f:
        f.write(README.format(versions=versions))


if __name__ == '__main__':
    main(sys.argv[1])
