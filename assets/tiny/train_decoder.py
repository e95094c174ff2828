"""Sharpens the autoencoder's decoder for what the flow model really draws; the encoder, and so the latents, stay as they are. Usage: train_decoder.py CPU_SECONDS [FLUX.pt [GUIDANCE_MAX]]
Four kinds of latents, each with the true picture: as encoded, with a little noise, noised to t in 0.4..1 and drawn again in three Euler steps with the right caption (a pool of one latent
for every picture, drawn afresh now and then). L1 + gradient loss; Muon for the convolutions, AdamW for the rest; EMA weights to vae_sharp/."""
import json, os, random, sys, time
import numpy as np
import torch
import lean
from diffusers import AutoencoderKL
from muon import orthogonal
from train_flux import COLOURS, FORMS, NAMES, Tokens, fill, latents, load, models, pack, unpack

torch.manual_seed(3); random.seed(3)
A, meta, (Z, _, _), m = torch.from_numpy(np.load('rgba.npy')), json.load(open('meta.json')), latents(), models()
mean, std = load(sys.argv[2] if len(sys.argv) > 2 else 'flux_ema.pt', m); most = float(sys.argv[3]) if len(sys.argv) > 3 else 1.0
tokens = Tokens(meta); W = {k: w.bfloat16() for k, w in lean.lean_from(m, tokens.t5, tokens.clip).items()}
lean.fuse()
PALETTE = torch.tensor(list(COLOURS.values())) / 255

@torch.no_grad()
def pool():
    """(colour, latent as the flow model draws it) of every picture."""
    colour, out = torch.randint(0, len(NAMES), (len(Z),)), []
    for k in range(0, len(Z), 71):
        ids = range(k, k + 71); c = colour[k:k + 71]
        x0 = pack((Z[k:k + 71][torch.arange(71), c].float() - mean) / std)
        t = 0.4 + 0.6 * torch.rand(71); x = x0 + t[:, None, None] * (torch.randn_like(x0) - x0)
        text = tokens([fill(random.choice(FORMS[:2])[1], random.choice(['', 'a ']), meta[i], NAMES[j]) for i, j in zip(ids, c.tolist())])
        g = 1 + (most - 1) * torch.rand(71)
        for s, e in ((1, 0.75), (0.75, 0.45), (0.45, 0)): x = x + ((e - s) * t)[:, None, None] * lean.forward(W, *text, x, s * t, g)
        out.append(unpack(x, 16, 16) * std + mean)
    return colour, torch.cat(out)

def gradients(x): return x[:, :, 1:] - x[:, :, :-1], x[:, :, :, 1:] - x[:, :, :, :-1]

vae = AutoencoderKL.from_pretrained(os.environ.get('VAE', 'vae')); decoder = vae.decoder.to(memory_format=torch.channels_last); n = 16
kernels = [p for p in decoder.parameters() if p.ndim == 4 and min(p.shape[:2]) > 3]; momentum = [torch.zeros_like(p) for p in kernels]
ids = {id(p) for p in kernels}
adam = torch.optim.AdamW([p for p in decoder.parameters() if id(p) not in ids], lr=5e-4, betas=(0.9, 0.99), weight_decay=0.0)
ema = {k: v.detach().clone() for k, v in decoder.state_dict().items()}
budget, cpu, step, log, rate = float(sys.argv[1]), time.process_time(), 0, [], float(os.environ.get('MUON_LR', 0.006))
while (fraction := (time.process_time() - cpu) / budget) < 1 and not os.path.exists('stop_decoder'):
    if step % 150 == 0: colour, drawn = pool()
    factor = min(1, (step + 1) / 50) * min(1, 1.6 * (1 - fraction))
    i = torch.randint(0, len(Z), (n,)); c = colour[i]; kind = torch.arange(n) % 4  # 0, 1, 2: drawn; 3: encoded, half of them with noise
    z = drawn[i].clone(); e = kind == 3; z[e] = Z[i[e], c[e]].float(); z[e] += torch.rand(int(e.sum()), 1, 1, 1) * (torch.rand(int(e.sum()), 1, 1, 1) < 0.5) * 0.5 * torch.randn_like(z[e])
    a = A[i].float() / 255
    x = (a[..., :3] * a[..., 3:] + PALETTE[c][:, None, None] * (1 - a[..., 3:])).permute(0, 3, 1, 2) * 2 - 1
    with torch.autocast('cpu', dtype=torch.bfloat16): y = decoder(z.to(memory_format=torch.channels_last))
    d = y.float() - x
    loss = d.abs().mean() + 0.3 * (d * d).mean() + 0.7 * sum(g.abs().mean() for g in gradients(d))
    loss.backward(); torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    for g in adam.param_groups: g['lr'] = 5e-4 * factor
    adam.step()
    with torch.no_grad():
        for p, b in zip(kernels, momentum):
            b.lerp_(p.grad, 0.1); u = p.grad.lerp(b, 0.9).reshape(len(p), -1); wide = u.shape[0] <= u.shape[1]
            o = orthogonal((u if wide else u.T)[None])[0].float()
            p.add_((o if wide else o.T).reshape(p.shape), alpha=-rate * factor)
        decay = min(0.99, (1 + step) / (10 + step))
        for k, v in decoder.state_dict().items(): ema[k].lerp_(v, 1 - decay)
    decoder.zero_grad()
    l1 = d.detach().abs().mean((1, 2, 3)); log.append((l1[~e].mean().item(), l1[e].mean().item())); step += 1
    if step % 10 == 0: print(step, f'cpu {time.process_time() - cpu:.0f} s, l1 drawn %.4f, encoded %.4f' % tuple(np.mean(log[-20:], 0)), flush=True)
vae.decoder.load_state_dict(ema); vae.save_pretrained('vae_sharp')
print(step, 'steps')
