"""The peer of `cargo bench --bench step -- block` and `-- klein`: one double and one single block of FLUX.1's width at 1024 image and 256 text tokens, the
same of FLUX.2 [klein] 4B with 512 text tokens, and one layer of Qwen3-4B, in torch bf16 on the CPU.
Usage: python block_torch.py [THREADS] [block|klein]   (PyPI: torch, diffusers, transformers). Prints the best and the median of ten forward passes, and torch's
own GEMM rate beside them."""
import statistics
import sys
import time

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel, FluxTransformer2DModel

torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
torch.set_grad_enabled(False)
only = sys.argv[2] if len(sys.argv) > 2 else None
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


def show(name, run):
    best, median = seconds(run, 10)
    print(f'{name}: best {best:.3f} s, median {median:.3f} s, {torch.get_num_threads()} threads, torch {torch.__version__}')


if only in (None, 'block'):
    show('block', lambda: model(**inputs))
if only in (None, 'klein'):
    del model
    klein = Flux2Transformer2DModel(patch_size=1, in_channels=128, num_layers=1, num_single_layers=1, attention_head_dim=128, num_attention_heads=24,
                                    joint_attention_dim=7680, mlp_ratio=3.0, axes_dims_rope=(32, 32, 32, 32), rope_theta=2000,
                                    guidance_embeds=False).to(torch.bfloat16).eval()
    latents, text = torch.randn(1, 1024, 128).bfloat16(), torch.randn(1, 512, 7680).bfloat16()
    given = dict(hidden_states=latents, encoder_hidden_states=text, timestep=torch.tensor([0.5]).bfloat16(), guidance=None, return_dict=False,
                 img_ids=Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 1, 32, 32)), txt_ids=Flux2KleinPipeline._prepare_text_ids(text))
    show('klein', lambda: klein(**given))
    del klein
    from transformers import Qwen3Config, Qwen3Model
    qwen3 = Qwen3Model(Qwen3Config(vocab_size=1000, hidden_size=2560, intermediate_size=9728, num_hidden_layers=1, num_attention_heads=32,
                                   num_key_value_heads=8, head_dim=128, rope_theta=1e6)).to(torch.bfloat16).eval()
    ids, mask = torch.randint(0, 1000, (1, 512)), (torch.arange(512) < 100).long()[None]
    show('qwen3 layer', lambda: qwen3(input_ids=ids, attention_mask=mask, use_cache=False))
x, w = torch.randn(1280, 3072).bfloat16(), torch.randn(12288, 3072).bfloat16()
best, median = seconds(lambda: torch.nn.functional.linear(x, w), 10)
print(f'linear 1280x3072x12288: best {2 * 1280 * 3072 * 12288 / best / 1e9:.0f} GFLOP/s, median {2 * 1280 * 3072 * 12288 / median / 1e9:.0f}')
