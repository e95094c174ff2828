"""How well model/ draws what is asked: over 100 fixed prompts, share with the right background colour and share whose nearest training picture
(RGB, 32x32, mean squared error, over all pictures on the asked colour) has the asked name. Usage: evaluate.py [STEPS [GUIDANCE]]   (after prepare.py; reads rgba.npy, meta.json)"""
import json, random, sys
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxPipeline
from train_flux import COLOURS, NAMES, T5_LENGTH

steps, guidance = int(sys.argv[1]) if len(sys.argv) > 1 else 20, float(sys.argv[2]) if len(sys.argv) > 2 else 3.5
A, meta = torch.from_numpy(np.load('rgba.npy')).float() / 255, json.load(open('meta.json'))
pipe = FluxPipeline.from_pretrained('model', torch_dtype=torch.float32); pipe.set_progress_bar_config(disable=True)
rng = random.Random(5); picks = rng.sample(range(len(meta)), 100); colours = [rng.choice(NAMES) for _ in picks]
right_bg = right_name = right_top5 = 0
for k in range(0, 100, 25):
    p, c = picks[k:k + 25], colours[k:k + 25]
    prompts = [f"a {meta[i]['label'].lower()}, {'3D' if meta[i]['style'] == '3d' else meta[i]['style']} style, on a {n} background" for i, n in zip(p, c)]
    noise = torch.randn(25, 16, 16, 16, generator=torch.Generator().manual_seed(k)).view(25, 16, 8, 2, 8, 2).permute(0, 2, 4, 1, 3, 5).reshape(25, 64, 64)
    out = torch.from_numpy(pipe(prompts, height=128, width=128, num_inference_steps=steps, guidance_scale=guidance, latents=noise, max_sequence_length=T5_LENGTH, output_type='np').images)
    for i, n, y in zip(p, c, out):
        bg = torch.tensor(COLOURS[n]) / 255
        corner = torch.cat([y[:6, :6].reshape(-1, 3), y[:6, -6:].reshape(-1, 3)]).mean(0)
        right_bg += int((corner - bg).abs().max() < 0.15)
        ref = (A[..., :3] * A[..., 3:] + bg * (1 - A[..., 3:])).permute(0, 3, 1, 2)
        d = ((F.adaptive_avg_pool2d(ref, 32) - F.adaptive_avg_pool2d(y.permute(2, 0, 1)[None], 32)) ** 2).mean((1, 2, 3))
        order = [meta[j]['label'] for j in d.argsort()[:5].tolist()]
        right_name += order[0] == meta[i]['label']; right_top5 += meta[i]['label'] in order
print(f'steps {steps} guidance {guidance}: background {right_bg}/100, nearest name {right_name}/100, in the nearest five {right_top5}/100')
