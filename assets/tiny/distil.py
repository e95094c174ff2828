"""Teach the guidance embedding what true CFG would do, as FLUX.1-dev's was taught. Usage: distil.py SECONDS FROM.pt TO.pt"""
import copy, json, random, sys, time
import numpy as np
import torch
from train_flux import NAMES, caption, encode, latents, load, models, pack, velocity

torch.manual_seed(2); random.seed(2)
meta, (Z, mean, std), m, n = json.load(open('meta.json')), latents(), models(), 48
load(sys.argv[2], m)
teacher = copy.deepcopy(m).eval().requires_grad_(False)
m['t5'].requires_grad_(False); m['clip'].requires_grad_(False)
opt = torch.optim.AdamW(m['dit'].parameters(), lr=2e-4, betas=(0.9, 0.99), weight_decay=0.0)
ema = {k: v.detach().clone() for k, v in m.state_dict().items()}
budget, start, step, losses = float(sys.argv[1]), time.time(), 0, []
while (fraction := (time.time() - start) / budget) < 1:
    for g in opt.param_groups: g['lr'] = 2e-4 * min(1, (step + 1) / 50) * (0.5 * (1 + np.cos(np.pi * fraction)) * 0.95 + 0.05)
    i, c = torch.randint(0, len(Z), (n,)), torch.randint(0, len(NAMES), (n,))
    captions = [caption(meta[a], NAMES[b]) for a, b in zip(i.tolist(), c.tolist())]
    x0 = pack((Z[i, c].float() - mean) / std); noise = torch.randn_like(x0); t = torch.sigmoid(torch.randn(n) + 0.3); scale = 1 + 5 * torch.rand(n)
    x = (1 - t)[:, None, None] * x0 + t[:, None, None] * noise
    with torch.autocast('cpu', dtype=torch.bfloat16):
        with torch.no_grad():
            text, pooled = encode(teacher, captions); text0, pooled0 = encode(teacher, [''] * n)
            one = torch.ones(n); vc = velocity(teacher, x, text, pooled, t, one).float(); vu = velocity(teacher, x, text0, pooled0, t, one).float()
            target = vu + scale[:, None, None] * (vc - vu)
        v = velocity(m, x, text, pooled, t, scale)
    loss = ((v.float() - target) ** 2).mean()
    opt.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(m['dit'].parameters(), 1.0); opt.step()
    losses.append(loss.item()); step += 1
    decay = min(0.995, (1 + step) / (10 + step))
    with torch.no_grad():
        for k, w in m.state_dict().items():
            if k.startswith('dit.'): ema[k].lerp_(w, 1 - decay)
    if step % 25 == 0: print(step, round(time.time() - start), f'loss {np.mean(losses[-25:]):.4f}', flush=True)
torch.save((ema, mean, std), sys.argv[3])
