"""The two ways to name the weights of this FLUX: diffusers' module names and BFL's (the names of the published single files).
to_bfl / from_bfl turn a transformer's state dict from one to the other; q, k, v (and a single block's mlp) are stacked row-wise in BFL's."""
import re
import torch

TOP = {'time_text_embed.timestep_embedder': 'time_in', 'time_text_embed.guidance_embedder': 'guidance_in', 'time_text_embed.text_embedder': 'vector_in'}

def table(doubles, singles, rows, width):
    """[(BFL name, [diffusers names, stacked row-wise], [rows of each])] in order of use; `rows` gives the mlp's width."""
    out = []
    def linear(bfl, *parts, sizes=None):
        for kind in ('weight', 'bias'): out.append((f'{bfl}.{kind}', [f'{p}.{kind}' for p in parts], sizes))
    linear('img_in', 'x_embedder')
    for d, b in TOP.items(): linear(b + '.in_layer', d + '.linear_1'); linear(b + '.out_layer', d + '.linear_2')
    linear('txt_in', 'context_embedder')
    for i in range(doubles):
        d, b = f'transformer_blocks.{i}.', f'double_blocks.{i}.'
        for side, q, norms, ff, mod in (('img', ('to_q', 'to_k', 'to_v', 'to_out.0'), ('norm_q', 'norm_k'), 'ff', 'norm1'), ('txt', ('add_q_proj', 'add_k_proj', 'add_v_proj', 'to_add_out'), ('norm_added_q', 'norm_added_k'), 'ff_context', 'norm1_context')):
            linear(f'{b}{side}_mod.lin', f'{d}{mod}.linear')
            linear(f'{b}{side}_attn.qkv', *(f'{d}attn.{x}' for x in q[:3]), sizes=[width] * 3)
            for n, s in zip(norms, ('query', 'key')): out.append((f'{b}{side}_attn.norm.{s}_norm.scale', [f'{d}attn.{n}.weight'], None))
            linear(f'{b}{side}_attn.proj', f'{d}attn.{q[3]}')
            linear(f'{b}{side}_mlp.0', f'{d}{ff}.net.0.proj'); linear(f'{b}{side}_mlp.2', f'{d}{ff}.net.2')
    for i in range(singles):
        d, b = f'single_transformer_blocks.{i}.', f'single_blocks.{i}.'
        linear(b + 'modulation.lin', d + 'norm.linear')
        linear(b + 'linear1', d + 'attn.to_q', d + 'attn.to_k', d + 'attn.to_v', d + 'proj_mlp', sizes=[width] * 3 + [rows])
        for n, s in (('norm_q', 'query'), ('norm_k', 'key')): out.append((f'{b}norm.{s}_norm.scale', [f'{d}attn.{n}.weight'], None))
        linear(b + 'linear2', d + 'proj_out')
    linear('final_layer.adaLN_modulation.1', 'norm_out.linear')
    linear('final_layer.linear', 'proj_out')
    return out

def swap(w): a, b = w.chunk(2); return torch.cat((b, a))  # diffusers keeps [scale, shift], BFL [shift, scale]

def geometry(state):
    """(double blocks, single blocks, mlp width, width) of a transformer's diffusers state dict."""
    count = lambda prefix: 1 + max(int(m[1]) for k in state if (m := re.match(prefix + r'\.(\d+)\.', k)))
    return count('transformer_blocks'), count('single_transformer_blocks'), *state['single_transformer_blocks.0.proj_mlp.weight'].shape

def to_bfl(state):
    out = {}
    for b, parts, _ in table(*geometry(state)):
        w = torch.cat([state[p] for p in parts]) if len(parts) > 1 else state[parts[0]]
        out[b] = swap(w) if b.startswith('final_layer.adaLN') else w
    assert sum(w.numel() for w in out.values()) == sum(w.numel() for w in state.values())
    return out

def from_bfl(state, shape):
    out = {}
    for b, parts, sizes in table(*shape):
        w = swap(state[b]) if b.startswith('final_layer.adaLN') else state[b]
        for p, x in zip(parts, w.split(sizes) if sizes else [w]): out[p] = x
    return out
