"""Sums of products as tensor cores make them, computed by MMA-Sim.

    python make_sums.py MMA_SIM > sums.txt

MMA_SIM is a checkout of https://github.com/microsoft/MMA-Sim. Needs torch.
"""
import random
import sys

sys.path.insert(0, sys.argv[1])

import torch
from mmasim.simulator import nv_ptx
from mmasim.simulator.arithmetic import nv_fused_dot_add, truncate_to_tf32

ARCHS = {'ampere': 'Ampere', 'ada': 'Ada Lovelace', 'hopper': 'Hopper', 'blackwell': 'RTX Blackwell'}
KINDS = [
    ('ampere', 'mma', 'bf16', 'f32', 16), ('ampere', 'mma', 'bf16', 'f32', 8), ('ampere', 'mma', 'f16', 'f32', 16),
    ('ampere', 'mma', 'f16', 'f16', 16), ('ampere', 'mma', 'tf32', 'f32', 8), ('ampere', 'mma', 'tf32', 'f32', 4),
    ('ada', 'mma', 'bf16', 'f32', 16), ('ada', 'mma', 'e4m3', 'f32', 32), ('ada', 'mma', 'e4m3', 'f16', 32), ('ada', 'mma', 'e5m2', 'f32', 32),
    ('hopper', 'mma', 'bf16', 'f32', 16), ('hopper', 'wgmma', 'bf16', 'f32', 16), ('hopper', 'wgmma', 'f16', 'f16', 16),
    ('hopper', 'wgmma', 'e4m3', 'f32', 32), ('hopper', 'wgmma', 'e5m2', 'f16', 32),
    ('blackwell', 'mma', 'bf16', 'f32', 16), ('blackwell', 'mma', 'e4m3', 'f32', 32), ('blackwell', 'mma', 'f16', 'f16', 16)]
TYPES = dict(bf16=torch.bfloat16, f16=torch.float16, tf32=torch.float32, e4m3=torch.float8_e4m3fn, e5m2=torch.float8_e5m2)


def stored(values, ty):
    x = torch.tensor(values, dtype=torch.float32)
    return truncate_to_tf32(x) if ty == 'tf32' else x.to(TYPES[ty])


def bits(x):
    return f'{x.float().view(torch.int32).item() & 0xFFFFFFFF:08x}'


def case(r, number, k, ty, accumulator):
    """Elements and the accumulator: alike, far apart, cancelling, subnormal, mostly zero, or not finite."""
    wide = {'bf16': 12, 'tf32': 12, 'f16': 6, 'e4m3': 4, 'e5m2': 7}[ty]
    least = {'f16': -24, 'e4m3': -9, 'e5m2': -16}.get(ty, -130)
    size = [0, wide, 2, None, 3, 1, 1][number]
    one = lambda: r.gauss(0, 1) * 2.0 ** (r.randint(-size, size) if size is not None else r.randint(least, least + 2))
    a, b = [one() for _ in range(k)], [r.gauss(0, 1) * 2.0 ** r.randint(-(size or 0), size or 0) for _ in range(k)]
    c = one() * 2.0 ** r.randint(-4, 4)
    if number == 2:
        a[k // 2:], b[k // 2:] = [-x * (1 + 2.0**-5) for x in a[:k // 2]], b[:k // 2]
    if number == 4:
        a = [x if r.random() < 0.2 else 0.0 for x in a]
        c = 0.0 if r.random() < 0.5 else -0.0
    if number == 6:
        a[r.randrange(k)] = float('nan') if ty == 'e4m3' else float('inf')
    return stored(a, ty), stored(b, ty), torch.tensor(c, dtype=torch.float16 if accumulator == 'f16' else torch.float32)


print('# generation, instruction, type of elements, accumulator; the accumulator, the sum, the elements of A and of B, all as the bits of f32.')
print('# Made by make_sums.py with MMA-Sim c785138.')
for chip, kind, ty, d, k in KINDS:
    if kind == 'mma':
        model = nv_ptx.mma(ARCHS[chip], f'm16n8k{k}.{d}.{ty}.{ty}.{d}')
        halved = model.is_split_k
    else:
        model = nv_ptx.wgmma(ARCHS[chip], f'm64n8k{k}.{d}.{ty}.{ty}')
        halved = False
    r = random.Random(f'{chip} {kind} {ty} {d} {k}')
    for number in range(7):
        a, b, c = case(r, number, k, ty, d)
        total, step = c, k // 2 if halved else k
        for at in range(0, k, step):
            total = nv_fused_dot_add(a[at:at + step], b[at:at + step], total, model.n_accum_fractional_bits, model.output_type)
        print(chip, kind, ty, d, bits(c), bits(total), *map(bits, a), *map(bits, b))
