"""The peer of `cargo bench --bench step -- block`: one double and one single block of FLUX.1's width at 1024 image and 256 text tokens in torch bf16 on the CPU.
Usage: python block_torch.py [THREADS]   (PyPI: torch, diffusers). Prints the best and the median of ten forward passes, and torch's own GEMM rate beside them."""
import statistics
import sys
import time

import torch
from diffusers import FluxTransformer2DModel

torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
torch.set_grad_enabled(False)
model = FluxTransformer2DModel(patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=128, num_attention_heads=24,
                               joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=True).to(torch.bfloat16).eval()
image, text = torch.randn(1, 1024, 64).bfloat16(), torch.randn(1, 256, 4096).bfloat16()
ids = torch.zeros(1024, 3)
ids[:, 1], ids[:, 2] = torch.arange(1024) // 32, torch.arange(1024) % 32
inputs = dict(hidden_states=image, encoder_hidden_states=text, pooled_projections=torch.randn(1, 768).bfloat16(), timestep=torch.tensor([0.5]).bfloat16(),
              guidance=torch.tensor([3.5]).bfloat16(), img_ids=ids, txt_ids=torch.zeros(256, 3), return_dict=False)


def seconds(run, times):
    run()
    out = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        out.append(time.perf_counter() - start)
    return min(out), statistics.median(out)


best, median = seconds(lambda: model(**inputs), 10)
print(f'block: best {best:.3f} s, median {median:.3f} s, {torch.get_num_threads()} threads, torch {torch.__version__}')
x, w = torch.randn(1280, 3072).bfloat16(), torch.randn(12288, 3072).bfloat16()
best, median = seconds(lambda: torch.nn.functional.linear(x, w), 10)
print(f'linear 1280x3072x12288: best {2 * 1280 * 3072 * 12288 / best / 1e9:.0f} GFLOP/s, median {2 * 1280 * 3072 * 12288 / median / 1e9:.0f}')
