"""Muon for the matrices (momentum, then five Newton-Schulz steps to the nearest orthogonal matrix, K. Jordan 2024), AdamW for the rest, on a dict of f32 weights with bf16 working copies.
Stacked matrices (q | k | v, the shifts, scales and gates of a modulation, attention | mlp in a single block) are split first, so that each part has its own step."""
import re
import torch

def parts(name, w):
    """The slices of one stacked tensor that are matrices in their own right; none where AdamW is the right optimiser."""
    if w.ndim != 2 or not name.endswith('.weight'): return []
    if 'qkv' in name or re.search(r'_mod\.lin|\.modulation\.lin', name): return list(range(0, w.shape[0], 256))
    if re.search(r'blocks\.\d+\.linear1', name): return [0, 256, 512, 768]
    if re.search(r'blocks\.\d+\.linear2', name): return [0, -256]
    if re.search(r'_attn\.proj|_mlp\.[02]', name): return [0]
    if re.search(r'(SelfAttention\.[qkvo]|wi_0|wi_1|\.wo|_proj|fc1|fc2)\.weight', name): return [0]
    return []

def pieces(name, w):
    cuts = parts(name, w)
    if not cuts: return None
    if cuts == [0, -256]: return [w[:, :256], w[:, 256:]]
    return [w[a:b] for a, b in zip(cuts, cuts[1:] + [w.shape[0]])]

def orthogonal(g, steps=5):
    x = g.bfloat16(); x = x / (x.float().norm(dim=(1, 2), keepdim=True).bfloat16() + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x

class Optimiser:
    def __init__(self, working, master, adam_lr, muon_lr, frozen=()):
        self.p, self.w, self.adam_lr, self.muon_lr = working, master, adam_lr, muon_lr
        live = [k for k in working if not k.startswith(tuple(frozen))] if frozen else list(working)
        self.m = {k: torch.zeros_like(master[k]) for k in live}
        self.muon = [k for k in live if parts(k, master[k])]
        self.adam = [k for k in live if not parts(k, master[k])]
        self.v = {k: torch.zeros_like(master[k]) for k in self.adam}
        self.n = 0

    @torch.no_grad()
    def step(self, factor, clip=1.0):
        self.n += 1
        grads = {k: self.p[k].grad.float() for k in self.m}
        norm = torch.stack([g.norm() for g in grads.values()]).norm()
        if not torch.isfinite(norm): return norm
        c = min(1.0, clip / (norm.item() + 1e-6))
        for k in self.adam:
            g = grads[k] * c; m, v, w = self.m[k], self.v[k], self.w[k]
            m.lerp_(g, 0.1); v.lerp_(g * g, 0.01)
            w.addcdiv_(m / (1 - 0.9 ** self.n), (v / (1 - 0.99 ** self.n)).sqrt_().add_(1e-8), value=-self.adam_lr * factor)
        groups = {}
        for k in self.muon:
            self.m[k].lerp_(grads[k], 0.05)
            for w, u in zip(pieces(k, self.w[k]), pieces(k, grads[k].lerp(self.m[k], 0.95))):
                wide = u.shape[0] <= u.shape[1]
                groups.setdefault((min(u.shape), max(u.shape)), []).append((w, u if wide else u.mT, wide))
        for items in groups.values():
            for (w, u, wide), o in zip(items, orthogonal(torch.stack([u for _, u, _ in items]))):
                o = o.float() if wide else o.float().mT
                w.add_(o, alpha=-self.muon_lr * factor * max(1, w.shape[0] / w.shape[1]) ** 0.5)
        for k in self.m: self.p[k].copy_(self.w[k]); self.p[k].grad = None
        return norm
