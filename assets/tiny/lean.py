"""A lean forward pass of the whole text-to-velocity model (CLIP, T5, FLUX transformer) for training on a CPU, on plain dicts of tensors.
It computes what the diffusers / transformers modules compute (check() compares them), with stacked q, k, v, only the embedding rows that captions use,
q and k rows reordered so that the rotary halves are contiguous, attention as two batched products, and everything under one torch.compile."""
import math
import torch
import torch.nn.functional as F
from names import from_bfl, geometry, to_bfl

HEADS, AXES = 2, (16, 56, 56)
HALVES = torch.cat([torch.arange(0, 128, 2), torch.arange(1, 128, 2)])  # even entries first
BACK = HALVES.argsort()

def reorder(w, order):  # rows of one stacked q | k | ... tensor
    w = w.clone()
    if w.ndim and w.shape[0] == 128: return w[order]
    for r in range(0, 2 * HEADS * 128, 128): w[r:r + 128] = w[r:r + 128][order]
    return w

def lean_from(m, t5_used, clip_used):
    """ModuleDict of the three modules -> {name: f32 tensor}."""
    out = {}
    for k, w in to_bfl(m['dit'].state_dict()).items():
        out['dit.' + k] = reorder(w, HALVES) if 'qkv' in k or 'linear1' in k or '_norm.scale' in k else w
    for k, w in m['t5'].state_dict().items():
        if k == 'shared.weight': out['t5.' + k] = w[t5_used]
        elif 'embed_tokens' not in k: out['t5.' + k] = w
    for k, w in m['clip'].state_dict().items():
        k = k.removeprefix('text_model.')
        out['clip.' + k] = w[clip_used] if 'token_embedding' in k else w
    return {k: w.detach().float().clone() for k, w in out.items()}

def lean_to(p, m, t5_used, clip_used):
    """Writes lean weights back into the modules; embedding rows of tokens no caption uses become zero."""
    shape = geometry(m['dit'].state_dict())
    m['dit'].load_state_dict(from_bfl({k[4:]: reorder(w, BACK) if 'qkv' in k or 'linear1' in k or '_norm.scale' in k else w for k, w in p.items() if k.startswith('dit.')}, shape))
    t5 = m['t5'].state_dict(); table = torch.zeros_like(t5['shared.weight']); table[t5_used] = p['t5.shared.weight'].to(table.dtype)
    m['t5'].load_state_dict({k: table if k in ('shared.weight', 'encoder.embed_tokens.weight') else p['t5.' + k] for k in t5})
    clip = m['clip'].state_dict(); new = {}
    for k, w in clip.items():
        short = 'clip.' + k.removeprefix('text_model.')
        new[k] = p[short]
        if 'token_embedding' in k: new[k] = torch.zeros_like(w); new[k][clip_used] = p[short].to(w.dtype)
    m['clip'].load_state_dict(new)

def rope():
    pos = torch.zeros(24 + 64, 3); pos[24:, 1] = torch.arange(64) // 8; pos[24:, 2] = torch.arange(64) % 8
    angles = torch.cat([pos[:, i:i + 1] * 10000.0 ** (-torch.arange(0, d, 2) / d) for i, d in enumerate(AXES)], 1)
    return angles.cos(), angles.sin()

COS, SIN = rope()

def buckets(n, count=32, far=128):  # T5's relative positions, both directions
    rel = torch.arange(n)[None] - torch.arange(n)[:, None]
    half = count // 2; out = (rel > 0).long() * half; rel = rel.abs(); exact = half // 2
    large = exact + (torch.log(rel.float().clamp(min=1) / exact) / math.log(far / exact) * (half - exact)).long()
    return out + torch.where(rel < exact, rel, large.clamp(max=half - 1))

BUCKETS = buckets(24)
FREQ = torch.exp(-math.log(10000) * torch.arange(128) / 128)

def sinus(t): a = t[:, None] * 1000 * FREQ; return torch.cat([a.cos(), a.sin()], 1).bfloat16()
def rms(x, w, eps=1e-6): x = x.float(); return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w.float()).bfloat16()
def norm(x): return F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)
def mod(x, shift, scale): return (norm(x) * (1 + scale) + shift).bfloat16()
def heads(x, n): return x.view(x.shape[0], x.shape[1], n, -1).transpose(1, 2)
def merge(x): return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)

def attend(q, k, v, bias=None, scale=1.0):
    s = (q @ k.transpose(-1, -2)).float() * scale
    if bias is not None: s = s + bias
    return merge(s.softmax(-1).bfloat16() @ v)

def turn(x, w, cos, sin):
    """RMS norm and rotation of one head-split q or k."""
    x = x.float()
    a, b = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w.float()).chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).bfloat16()

def gate(x, g, y): return (x + g * y).bfloat16()
def gelu(x): return F.gelu(x, approximate='tanh')

def fuse():
    """Compiles the elementwise pieces (one kernel each, forward and backward)."""
    global mod, turn, gate, gelu
    mod, turn, gate, gelu = (torch.compile(f, dynamic=False) for f in (mod, turn, gate, gelu))

def forward(P, t5_ids, clip_ids, clip_end, x, t, guidance):
    lin = lambda name, y: F.linear(y, P[name + '.weight'], P.get(name + '.bias'))
    two = lambda name, y: lin(name + '.out_layer', F.silu(lin(name + '.in_layer', y)))
    # T5
    y = F.embedding(t5_ids, P['t5.shared.weight'])
    bias = P['t5.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight'].float()[BUCKETS].permute(2, 0, 1)
    for i in range(2):
        b = f't5.encoder.block.{i}.layer.'
        z = rms(y, P[b + '0.layer_norm.weight'])
        q, k, v = (heads(lin(b + '0.SelfAttention.' + c, z), 2) for c in 'qkv')
        y = y + lin(b + '0.SelfAttention.o', attend(q, k, v, bias))
        z = rms(y, P[b + '1.layer_norm.weight'])
        y = y + lin(b + '1.DenseReluDense.wo', F.gelu(lin(b + '1.DenseReluDense.wi_0', z), approximate='tanh') * lin(b + '1.DenseReluDense.wi_1', z))
    text = rms(y, P['t5.encoder.final_layer_norm.weight'])
    # CLIP
    n = clip_ids.shape[1]
    y = F.embedding(clip_ids, P['clip.embeddings.token_embedding.weight']) + P['clip.embeddings.position_embedding.weight'][:n]
    causal = torch.full((n, n), -1e9).triu(1)
    ln = lambda name, y: F.layer_norm(y.float(), (64,), P[name + '.weight'].float(), P[name + '.bias'].float(), 1e-5).bfloat16()
    for i in range(2):
        b = f'clip.encoder.layers.{i}.'
        z = ln(b + 'layer_norm1', y)
        q, k, v = (heads(lin(f'{b}self_attn.{c}_proj', z), 1) for c in 'qkv')
        y = y + lin(b + 'self_attn.out_proj', attend(q, k, v, causal, 64 ** -0.5))
        z = lin(b + 'mlp.fc1', ln(b + 'layer_norm2', y))
        y = y + lin(b + 'mlp.fc2', z * torch.sigmoid(1.702 * z))
    pooled = ln('clip.final_layer_norm', y)[torch.arange(len(y)), clip_end]
    # FLUX
    vec = F.silu((two('dit.time_in', sinus(t)) + two('dit.guidance_in', sinus(guidance)) + two('dit.vector_in', pooled)))
    mods = lambda name, c: lin(name, vec).float()[:, None].chunk(c, -1)
    img, txt = lin('dit.img_in', x.bfloat16()), lin('dit.txt_in', text)
    for i in range(2):
        b = f'dit.double_blocks.{i}.'
        mi, mt = mods(b + 'img_mod.lin', 6), mods(b + 'txt_mod.lin', 6)
        qs = []
        for side, y, m in (('txt', txt, mt), ('img', img, mi)):
            q, k, v = lin(f'{b}{side}_attn.qkv', mod(y, m[0], m[1])).chunk(3, -1)
            c, s = (COS[:24], SIN[:24]) if side == 'txt' else (COS[24:], SIN[24:])
            qs.append((turn(heads(q, 2), P[f'{b}{side}_attn.norm.query_norm.scale'], c, s), turn(heads(k, 2), P[f'{b}{side}_attn.norm.key_norm.scale'], c, s), heads(v, 2)))
        q, k, v = (torch.cat(c, 2) for c in zip(*qs))
        a = attend(q, k, v, None, 128 ** -0.5)
        out = []
        for side, y, m, z in (('txt', txt, mt, a[:, :24]), ('img', img, mi, a[:, 24:])):
            y = gate(y, m[2], lin(f'{b}{side}_attn.proj', z))
            z = gelu(lin(f'{b}{side}_mlp.0', mod(y, m[3], m[4])))
            out.append(gate(y, m[5], lin(f'{b}{side}_mlp.2', z)))
        txt, img = out
    y = torch.cat([txt, img], 1)
    for i in range(4):
        b = f'dit.single_blocks.{i}.'
        m = mods(b + 'modulation.lin', 3)
        q, k, v, z = lin(b + 'linear1', mod(y, m[0], m[1])).split([256, 256, 256, 1024], -1)
        q, k = (turn(heads(c, 2), P[b + f'norm.{name}_norm.scale'], COS, SIN) for c, name in ((q, 'query'), (k, 'key')))
        a = attend(q, k, heads(v, 2), None, 128 ** -0.5)
        y = gate(y, m[2], lin(b + 'linear2', torch.cat([a, gelu(z)], -1)))
    m = mods('dit.final_layer.adaLN_modulation.1', 2)
    return lin('dit.final_layer.linear', mod(y[:, 24:], m[0], m[1])).float()
