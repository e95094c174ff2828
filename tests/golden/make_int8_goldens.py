"""Reference values for products in 8-bit integers (ComfyUI's ConvRot), from comfy-kitchen's eager code.

    python make_int8_goldens.py OUT_DIR
    python make_int8_goldens.py --check CONVERTED SOURCE

The first writes int8.safetensors. For each case: `CASE.w` (n, k) and `CASE.x` (rows, k) in F32; `CASE.weight`, `.weight_scale` and
`.comfy_quant` as ComfyUI stores them; `CASE.dequantised`; `CASE.x_q` and `CASE.x_scale`, the integers of x; `CASE.y`, the product with
`CASE.bias`. `CASE.x` has columns that are 40 times as large as others.

The second reads CONVERTED, which `flux-fast convert --to int8-convrot` wrote from SOURCE (a safetensors file of wide types or scaled FP8
with the same names), with comfy-kitchen: each record gives back its weights, and comfy-kitchen's own integers of SOURCE are those of the file, but for
ties that its sums round otherwise. Needs torch, numpy, safetensors and comfy-kitchen 0.2.40; no network.
"""
import json
import sys

import torch
from comfy_kitchen.backends.eager import quantization as kitchen
from comfy_kitchen.tensor.int8_utils import _build_hadamard
from safetensors import safe_open
from safetensors.torch import save_file

torch.set_grad_enabled(False)
torch.set_num_threads(1)

CASES = dict(g256=(24, 512, 10, 256), g64=(16, 192, 7, 64), g16=(9, 48, 5, 16), plain=(12, 96, 6, 0))


def make(folder):
    out = {}
    for name, (n, k, rows, group) in CASES.items():
        random = torch.Generator().manual_seed(n * k + group)
        w = torch.randn(n, k, generator=random) * 0.05
        x = torch.randn(rows, k, generator=random)
        x[:, ::61] *= 40
        bias = torch.randn(n, generator=random)
        record = dict(format='int8_tensorwise')
        if group:
            record |= dict(convrot=True, convrot_groupsize=group)
            q, s = kitchen.quantize_int8_convrot_weight(w, group)
            d = kitchen.dequantize_int8_convrot_weight(q, s, group)
            x_q, x_scale = kitchen.quantize_and_rotate_rowwise(x, _build_hadamard(group), group)
        else:
            q, s = kitchen.quantize_int8_rowwise(w)
            d = kitchen.dequantize_int8_simple(q, s)
            x_q, x_scale = kitchen.quantize_int8_rowwise(x)
        y = kitchen.int8_linear(x, q, s, bias, torch.float32, bool(group), group or 256)
        print(name, 'error of the product', float((y - bias - x @ w.T).norm() / (x @ w.T).norm()))
        text = torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)
        values = dict(w=w, x=x, bias=bias, weight=q, weight_scale=s, comfy_quant=text, dequantised=d, x_q=x_q, x_scale=x_scale, y=y)
        out |= {f'{name}.{key}': value.contiguous() for key, value in values.items()}
    save_file(out, f'{folder}/int8.safetensors')


def check(converted, source):
    found = 0
    with safe_open(converted, 'pt') as file, safe_open(source, 'pt') as wide:
        for name in file.keys():
            if not name.endswith('.comfy_quant'):
                continue
            layer = name.removesuffix('.comfy_quant')
            record = json.loads(bytes(file.get_tensor(name).tolist()))
            assert record['format'] == 'int8_tensorwise', record
            if not record.get('convrot'):
                continue
            group = record['convrot_groupsize']
            q, s = file.get_tensor(f'{layer}.weight'), file.get_tensor(f'{layer}.weight_scale')
            w = wide.get_tensor(f'{layer}.weight').float()
            if f'{layer}.weight_scale' in wide.keys():
                w = w * wide.get_tensor(f'{layer}.weight_scale').reshape(-1, 1)
            error = (kitchen.dequantize_int8_convrot_weight(q, s, group) - w).norm() / w.norm()
            theirs, scale = kitchen.quantize_int8_convrot_weight(w, group)
            off = (theirs.int() - q.int()).abs()
            assert error < 0.02 and off.max() <= 1 and (off > 0).float().mean() < 1e-3, (layer, error, off.max())
            worst = ((scale - s).abs() / s).max()
            assert worst <= 1e-5, (layer, worst)
            found += 1
    assert found, 'there are no rotated weights'
    print(f'{found} rotated weights are those of comfy-kitchen')


if __name__ == '__main__':
    check(*sys.argv[2:]) if sys.argv[1] == '--check' else make(sys.argv[1])
