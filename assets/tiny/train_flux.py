"""Trains the small FLUX (transformer, T5, CLIP together). Usage: train_flux.py STEPS COOLDOWN [PLAIN.pt [START.pt]]   (after prepare.py and train_vae.py)
Rectified flow on cached latents; t is drawn with shift 2.5, so that most of the work is at high noise, where only the caption can tell the picture; 6 % empty captions
(so that true CFG works). Without PLAIN the guidance embedding is fed 1.0; with it, guidance is learnt too (README.md). Muon for the matrices, AdamW for the rest; constant rate, then COOLDOWN steps of linear decay; EMA weights to flux_ema.pt.
PLAIN: a flux_ema.pt whose answers to the empty caption are the ground for guidance, and to go on from unless START is given. A file named `cooldown` with a number of steps in it starts the decay at once, over so many; state.pt is written now and then, and taken up again if there."""
import itertools, json, os, random, sys, time
import numpy as np
import torch
import lean
from diffusers import AutoencoderKL, FluxTransformer2DModel
from tokenizers import Tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

COLOURS = {'white': (255, 255, 255), 'black': (30, 30, 34), 'red': (220, 60, 60), 'green': (60, 160, 75), 'blue': (60, 110, 220), 'yellow': (245, 205, 70), 'orange': (245, 150, 60), 'pink': (240, 150, 190), 'purple': (150, 90, 200)}
NAMES, T5_LENGTH, TOKENS = list(COLOURS), 24, 64
TOKENIZERS = os.environ.get('TOKENIZERS', '../tokenizers')

t5_tokenizer = Tokenizer.from_file(TOKENIZERS + '/t5-tokenizer.json')
t5_tokenizer.enable_padding(length=T5_LENGTH, pad_id=0, pad_token='<pad>'); t5_tokenizer.enable_truncation(T5_LENGTH)
clip_tokenizer = Tokenizer.from_file('clip_tokenizer.json')  # the real CLIP BPE in `tokenizers` format, start and end tokens by template
clip_tokenizer.enable_padding(length=77, pad_id=49407, pad_token='<|endoftext|>'); clip_tokenizer.enable_truncation(77)

def models():
    t5 = T5EncoderModel(T5Config(vocab_size=32128, d_model=128, d_kv=64, num_heads=2, d_ff=256, num_layers=2, feed_forward_proj='gated-gelu', dropout_rate=0.0, tie_word_embeddings=False))
    clip = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1, max_position_embeddings=77, hidden_act='quick_gelu', bos_token_id=49406, eos_token_id=49407, pad_token_id=49407, projection_dim=64))
    dit = FluxTransformer2DModel(patch_size=1, in_channels=64, num_layers=2, num_single_layers=4, attention_head_dim=128, num_attention_heads=2, joint_attention_dim=128, pooled_projection_dim=64, guidance_embeds=True, axes_dims_rope=(16, 56, 56))
    with torch.no_grad():  # adaLN-zero
        t5.shared.weight.mul_(0.3)
        zero = [b.norm1.linear for b in dit.transformer_blocks] + [b.norm1_context.linear for b in dit.transformer_blocks] + [b.norm.linear for b in dit.single_transformer_blocks] + [dit.norm_out.linear, dit.proj_out]
        for l in zero: l.weight.zero_(); l.bias.zero_()
    return torch.nn.ModuleDict(dict(dit=dit, t5=t5, clip=clip))

def pack(z): b, c, h, w = z.shape; return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), c * 4)
def unpack(x, h, w): return x.view(len(x), h // 2, w // 2, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(len(x), 16, h, w)
image_ids = torch.zeros(8, 8, 3); image_ids[..., 1] = torch.arange(8)[:, None]; image_ids[..., 2] = torch.arange(8)[None]
image_ids, text_ids = image_ids.reshape(TOKENS, 3), torch.zeros(T5_LENGTH, 3)

def encode(m, captions):
    t = torch.tensor([e.ids for e in t5_tokenizer.encode_batch(captions)])
    c = torch.tensor([e.ids for e in clip_tokenizer.encode_batch(captions)])
    last = int((c != 49407).sum(1).max()) + 1
    return m['t5'](input_ids=t)[0], m['clip'](input_ids=c[:, :min(77, last + 1)]).pooler_output

def velocity(m, x, text, pooled, t, guidance):
    return m['dit'](hidden_states=x, encoder_hidden_states=text, pooled_projections=pooled, timestep=t, img_ids=image_ids, txt_ids=text_ids, guidance=guidance, return_dict=False)[0]

FORMS = [(0.45, '{a}{label}, {style} style, on a {colour} background'), (0.70, '{a}{label} in {style} style on a {colour} background'), (0.80, '{style} {label}, {colour} background'),
         (0.94, '{a}{label} on a {colour} background'), (1.00, '{a}{label}')]

def fill(form, a, entry, colour): return form.format(a=a, label=entry['label'].lower(), style={'3d': '3D'}.get(entry['style'], entry['style']), colour=colour)

def caption(entry, colour):
    r = random.random()
    return fill(next(f for limit, f in FORMS if r < limit), random.choice(['', 'a ']), entry, colour)

def vocabulary(meta):
    """The T5 and CLIP tokens that captions use (ids, sorted), and the longest CLIP sequence."""
    every = [''] + [fill(f, a, e, c) for (_, f), a, e, c in itertools.product(FORMS, ('', 'a '), meta, NAMES)]
    t, c = t5_tokenizer.encode_batch(every), clip_tokenizer.encode_batch(every)
    ids = lambda encodings: torch.tensor(sorted({i for e in encodings for i in e.ids}))
    return ids(t), ids(c), max(e.ids.index(49407) for e in c) + 1

def latents():
    """Every picture on every colour through the encoder, once: (Z [N, colours, 16, 16, 16] f16, mean, std)."""
    if not os.path.exists('latents.pt'):
        A, vae = torch.from_numpy(np.load('rgba.npy')), AutoencoderKL.from_pretrained('vae').eval()
        bg = torch.tensor(list(COLOURS.values())) / 255
        Z = torch.empty(len(A), len(bg), 16, 16, 16, dtype=torch.float16)
        with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
            for i, a in enumerate(A):
                a = a.float() / 255
                x = (a[..., :3] * a[..., 3:] + bg[:, None, None] * (1 - a[..., 3:])).permute(0, 3, 1, 2) * 2 - 1
                Z[i] = vae.encode(x).latent_dist.mode().half()
        torch.save((Z, Z.float().mean().item(), Z.float().std().item()), 'latents.pt')
    return torch.load('latents.pt')

class Tokens:
    """Captions -> ids within the used rows."""
    def __init__(self, meta):
        self.t5, self.clip, self.length = vocabulary(meta)
        self.t5_row, self.clip_row = torch.zeros(32128, dtype=torch.long), torch.zeros(49408, dtype=torch.long)
        self.t5_row[self.t5] = torch.arange(len(self.t5)); self.clip_row[self.clip] = torch.arange(len(self.clip))
    def __call__(self, captions):
        t = torch.tensor([e.ids for e in t5_tokenizer.encode_batch(captions)])
        c = torch.tensor([e.ids for e in clip_tokenizer.encode_batch(captions)])[:, :self.length]
        return self.t5_row[t], self.clip_row[c], (c == 49407).int().argmax(1)

def times(n, shift=2.5): u = torch.rand(n); return shift * u / (1 + (shift - 1) * u)

def load(path, m):
    weights, mean, std = torch.load(path)
    m.load_state_dict({k: w.float() if w.is_floating_point() else w for k, w in weights.items()})
    return mean, std

def save(path, p, m, tokens, mean, std):
    lean.lean_to(p, m, tokens.t5, tokens.clip)
    torch.save(({k: w.half() if w.is_floating_point() else w for k, w in m.state_dict().items()}, mean, std), path)

if __name__ == '__main__':
    from muon import Optimiser
    torch.manual_seed(int(os.environ.get('SEED', 1))); random.seed(int(os.environ.get('SEED', 1)))
    steps, cooldown = int(sys.argv[1]), int(sys.argv[2])
    meta, (Z, mean, std), m, n = json.load(open('meta.json')), latents(), models(), int(os.environ.get('BATCH', 64))
    tokens = Tokens(meta); print(len(tokens.t5), 'T5 tokens,', len(tokens.clip), 'CLIP tokens in use, CLIP length', tokens.length, flush=True)
    W = lean.lean_from(m, tokens.t5, tokens.clip)
    P = {k: w.bfloat16().requires_grad_() for k, w in W.items()}
    opt = Optimiser(P, W, float(os.environ.get('ADAM_LR', 7e-4)), float(os.environ.get('MUON_LR', 0.01)))
    ema = {k: w.clone() for k, w in W.items()}; step, losses = 0, []
    plain = None; nothing = tokens([''] * n)
    if len(sys.argv) > 3:
        mean, std = load(sys.argv[3], m); plain = {k: w.bfloat16() for k, w in lean.lean_from(m, tokens.t5, tokens.clip).items()}
        if len(sys.argv) > 4: load(sys.argv[4], m)
        for k, w in lean.lean_from(m, tokens.t5, tokens.clip).items(): W[k].copy_(w); ema[k].copy_(w); P[k].data.copy_(w)
    if os.path.exists('state.pt'):
        s = torch.load('state.pt'); step, opt.n = s['step'], s['n']
        for mine, theirs in ((W, s['w']), (ema, s['ema']), (opt.m, s['m']), (opt.v, s['v'])):
            for k in mine: mine[k].copy_(theirs[k])
        for k in P: P[k].data.copy_(W[k])
        torch.manual_seed(step); random.seed(step)
    lean.fuse()
    start, cpu, first = time.time(), time.process_time(), step
    while step < steps:
        if os.path.exists('cooldown'): cooldown = int(open('cooldown').read()); steps = step + cooldown; os.remove('cooldown')
        i, c = torch.randint(0, len(Z), (n,)), torch.randint(0, len(NAMES), (n,))
        captions = ['' if random.random() < 0.06 else caption(meta[a], NAMES[b]) for a, b in zip(i.tolist(), c.tolist())]
        x0 = pack((Z[i, c].float() - mean) / std); noise = torch.randn_like(x0); t = times(n)
        x = (1 - t)[:, None, None] * x0 + t[:, None, None] * noise
        w = torch.tensor([1.0 if plain is None or not s or random.random() < 0.15 else random.uniform(1, 5) for s in captions])
        v = lean.forward(P, *tokens(captions), x, t, w)
        if plain is not None:  # what the answer at guidance w says about guidance 1
            with torch.no_grad(): u = lean.forward(plain, *nothing, x, t, torch.ones(n))
            v = u + (v - u) / w[:, None, None]
        each = ((v - (noise - x0)) ** 2).mean((1, 2)); loss = (w * each).mean()
        loss.backward()
        norm = opt.step(min(1, (step - first + 1) / 100, (steps - step) / cooldown))
        high = t > 0.9
        losses.append((each.mean().item(), each[high].mean().item() if high.any() else float('nan'), norm.item())); step += 1
        if step % 5 == 0:
            decay = min(0.998, (1 + step) / (10 + step)) ** 5
            for k, w in W.items(): ema[k].lerp_(w, 1 - decay)
        if step % 50 == 0: print(step, f'{time.time() - start:.0f} s, cpu {time.process_time() - cpu:.0f} s, loss %.4f, at t > 0.9 %.4f, gradient %.2f' % tuple(np.nanmean(losses[-50:], 0)), flush=True)
        if step % 200 == 0 or step == steps:
            torch.save(dict(step=step, n=opt.n, w=W, ema=ema, m=opt.m, v=opt.v), 'state.tmp'); os.replace('state.tmp', 'state.pt')
            save('flux_ema.tmp', ema, m, tokens, mean, std); os.replace('flux_ema.tmp', 'flux_ema.pt')
