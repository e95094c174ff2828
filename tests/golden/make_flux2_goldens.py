"""Reference values of FLUX.2 [klein], computed with diffusers and transformers on two small geometries.

    python make_flux2_goldens.py OUT_DIR

Writes `klein_distilled.safetensors` and `klein_base.safetensors` into OUT_DIR. Everything is float32 on the CPU, on one thread. No weight is
stored: `synthetic` of make_goldens.py makes each from its name and a seed. Needs what make_goldens.py needs; no network, no tokenizer files.
"""
import json
import os
import sys

import diffusers
import make_goldens as base
import PIL.Image
import torch
import transformers
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from transformers import Qwen3Config, Qwen3ForCausalLM

base.TABLES += ('embed_tokens.weight',)

# Ids of the whole chat template, without padding.
END = [151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]
PROMPTS = {
    'A cat holding a sign that says hello world': [151644, 872, 198, 32, 8251, 9963, 264, 1841, 429, 2727, 23811, 1879] + END,
    'A lighthouse on a cliff at dusk, oil painting, warm light':
        [151644, 872, 198, 32, 326, 57909, 389, 264, 43006, 518, 92885, 11, 5590, 18824, 11, 8205, 3100] + END,
    '': [151644, 872, 198] + END,
}
CAT, LIGHTHOUSE, NOTHING = PROMPTS
PAD, TAPS = 151643, (9, 18, 27)

# qwen: width, heads, key heads, head width, MLP, layers. vae: channels of the encoder and the decoder, blocks, latent channels.
GEOMETRIES = {
    'klein_distilled': dict(seed=7, heads=2, head_dim=64, double=1, single=2, ratio=3.0, qwen=(48, 3, 1, 32, 96, 30),
                            vae=([32, 64, 64, 64], [32, 64, 64, 64], 1, 8), prompt=CAT, width=96, height=64, grid=(3, 5), latent=(6, 10),
                            steps=4, scale=1.0),
    'klein_base': dict(seed=0x0FEDCBA987654321, heads=3, head_dim=32, double=2, single=1, ratio=2.0, qwen=(64, 4, 2, 16, 160, 27),
                       vae=([32, 64, 64], [32, 32, 64], 2, 4), prompt=LIGHTHOUSE, width=48, height=80, grid=(5, 2), latent=(4, 6),
                       steps=5, scale=4.0),
}


def linear(out, name, rows, cols):
    out[name + '.weight'] = [rows, cols]


def flux2_shapes(c):
    s, hd = {}, c['attention_head_dim']
    h = hd * c['num_attention_heads']
    mlp = int(h * c['mlp_ratio'])
    linear(s, 'img_in', h, c['in_channels'])
    linear(s, 'time_in.in_layer', h, 256)
    linear(s, 'time_in.out_layer', h, h)
    linear(s, 'txt_in', h, c['joint_attention_dim'])
    for name, vectors in (('double_stream_modulation_img', 6), ('double_stream_modulation_txt', 6), ('single_stream_modulation', 3)):
        linear(s, name + '.lin', vectors * h, h)
    for i in range(c['num_layers']):
        for stream in ('img', 'txt'):
            p = f'double_blocks.{i}.{stream}_'
            linear(s, p + 'attn.qkv', 3 * h, h)
            s[p + 'attn.norm.query_norm.scale'] = s[p + 'attn.norm.key_norm.scale'] = [hd]
            linear(s, p + 'attn.proj', h, h)
            linear(s, p + 'mlp.0', 2 * mlp, h)
            linear(s, p + 'mlp.2', h, mlp)
    for i in range(c['num_single_layers']):
        p = f'single_blocks.{i}.'
        linear(s, p + 'linear1', 3 * h + 2 * mlp, h)
        linear(s, p + 'linear2', h, h + mlp)
        s[p + 'norm.query_norm.scale'] = s[p + 'norm.key_norm.scale'] = [hd]
    linear(s, 'final_layer.linear', c['in_channels'], h)
    linear(s, 'final_layer.adaLN_modulation.1', 2 * h, h)
    return s


def flux2_state(w, c):
    h = c['attention_head_dim'] * c['num_attention_heads']
    out = {}

    def put(source, *targets):
        weight = w[source + '.weight']
        for part, target in zip(weight.split(h) if len(targets) > 1 else [weight], targets, strict=True):
            out[target + '.weight'] = part

    put('img_in', 'x_embedder')
    put('txt_in', 'context_embedder')
    put('final_layer.linear', 'proj_out')
    put('time_in.in_layer', 'time_guidance_embed.timestep_embedder.linear_1')
    put('time_in.out_layer', 'time_guidance_embed.timestep_embedder.linear_2')
    for name in ('double_stream_modulation_img', 'double_stream_modulation_txt', 'single_stream_modulation'):
        put(name + '.lin', name + '.linear')
    shift, scale = w['final_layer.adaLN_modulation.1.weight'].chunk(2)
    out['norm_out.linear.weight'] = torch.cat([scale, shift])
    for i in range(c['num_layers']):
        b, d = f'double_blocks.{i}.', f'transformer_blocks.{i}.'
        put(b + 'img_attn.qkv', *(d + f'attn.to_{x}' for x in 'qkv'))
        put(b + 'txt_attn.qkv', *(d + f'attn.add_{x}_proj' for x in 'qkv'))
        put(b + 'img_attn.proj', d + 'attn.to_out.0')
        put(b + 'txt_attn.proj', d + 'attn.to_add_out')
        for x, name in (('q', 'query'), ('k', 'key')):
            out[f'{d}attn.norm_{x}.weight'] = w[f'{b}img_attn.norm.{name}_norm.scale']
            out[f'{d}attn.norm_added_{x}.weight'] = w[f'{b}txt_attn.norm.{name}_norm.scale']
        for bfl, name in (('img_mlp', 'ff'), ('txt_mlp', 'ff_context')):
            put(f'{b}{bfl}.0', f'{d}{name}.linear_in')
            put(f'{b}{bfl}.2', f'{d}{name}.linear_out')
    for i in range(c['num_single_layers']):
        b, d = f'single_blocks.{i}.', f'single_transformer_blocks.{i}.attn.'
        put(b + 'linear1', d + 'to_qkv_mlp_proj')
        put(b + 'linear2', d + 'to_out')
        for x, name in (('q', 'query'), ('k', 'key')):
            out[f'{d}norm_{x}.weight'] = w[f'{b}norm.{name}_norm.scale']
    return out


def qwen3_shapes(c):
    d, hd, ff = c['hidden_size'], c['head_dim'], c['intermediate_size']
    inner, kv = c['num_attention_heads'] * hd, c['num_key_value_heads'] * hd
    s = {'model.embed_tokens.weight': [c['vocab_size'], d], 'model.norm.weight': [d]}
    for i in range(c['num_hidden_layers']):
        p = f'model.layers.{i}.'
        for x, rows in (('q', inner), ('k', kv), ('v', kv)):
            linear(s, f'{p}self_attn.{x}_proj', rows, d)
        linear(s, p + 'self_attn.o_proj', d, inner)
        s[p + 'self_attn.q_norm.weight'] = s[p + 'self_attn.k_norm.weight'] = [hd]
        for x in ('gate', 'up'):
            linear(s, f'{p}mlp.{x}_proj', ff, d)
        linear(s, p + 'mlp.down_proj', d, ff)
        s[p + 'input_layernorm.weight'] = s[p + 'post_attention_layernorm.weight'] = [d]
    return s


def vae_shapes(c):
    z = c['latent_channels']
    whole = base.vae_shapes(c)
    decoder = base.vae_shapes(c | dict(block_out_channels=c['decoder_block_out_channels']))
    s = {k: v for k, v in whole.items() if k.startswith('encoder')} | {k: v for k, v in decoder.items() if k.startswith('decoder')}
    for name, n in (('encoder.quant_conv', 2 * z), ('decoder.post_quant_conv', z)):
        s[name + '.weight'], s[name + '.bias'] = [n, n, 1, 1], [n]
    s['bn.running_mean'] = s['bn.running_var'] = [4 * z]
    return s


def vae_state(w, levels):
    own = {k: t for k, t in w.items() if 'quant_conv' in k or k.startswith('bn.')}
    out = base.vae_state({k: t for k, t in w.items() if k not in own}, levels)
    out |= {k.removeprefix('encoder.').removeprefix('decoder.'): t for k, t in own.items()}
    return out | {'bn.num_batches_tracked': torch.tensor(0)}


def configs(g):
    width, heads, kv, hd, ff, layers = g['qwen']
    encoder, decoder, per_block, z = g['vae']
    return dict(
        transformer=dict(_class_name='Flux2Transformer2DModel', attention_head_dim=g['head_dim'], axes_dims_rope=[g['head_dim'] // 4] * 4,
                         guidance_embeds=False, in_channels=4 * z, joint_attention_dim=3 * width, mlp_ratio=g['ratio'],
                         num_attention_heads=g['heads'], num_layers=g['double'], num_single_layers=g['single'], patch_size=1, rope_theta=2000,
                         timestep_guidance_channels=256),
        text_encoder=dict(architectures=['Qwen3ForCausalLM'], model_type='qwen3', attention_bias=False, head_dim=hd, hidden_act='silu',
                          hidden_size=width, intermediate_size=ff, max_position_embeddings=40960, num_attention_heads=heads,
                          num_hidden_layers=layers, num_key_value_heads=kv, rms_norm_eps=1e-6, rope_theta=1000000, tie_word_embeddings=True,
                          vocab_size=151936),
        vae=dict(_class_name='AutoencoderKLFlux2', act_fn='silu', block_out_channels=encoder, decoder_block_out_channels=decoder, in_channels=3,
                 out_channels=3, latent_channels=z, layers_per_block=per_block, norm_num_groups=32, use_quant_conv=True,
                 use_post_quant_conv=True, mid_block_add_attention=True, batch_norm_eps=1e-4, sample_size=1024,
                 down_block_types=['DownEncoderBlock2D'] * len(encoder), up_block_types=['UpDecoderBlock2D'] * len(encoder)),
        scheduler=dict(_class_name='FlowMatchEulerDiscreteScheduler', num_train_timesteps=1000, base_image_seq_len=256, max_image_seq_len=4096,
                       base_shift=0.5, max_shift=1.15, shift=3.0, use_dynamic_shifting=True, time_shift_type='exponential'))


def build(c, seed):
    public = lambda d: {k: v for k, v in d.items() if not k.startswith('_') and k != 'architectures'}
    shapes = dict(flux2=flux2_shapes(c['transformer']), qwen3=qwen3_shapes(c['text_encoder']), vae=vae_shapes(c['vae']))
    w = {component: base.weights(component, s, seed) for component, s in shapes.items()}
    encoder = Qwen3ForCausalLM(Qwen3Config(**public(c['text_encoder']))).eval()
    encoder.load_state_dict(w['qwen3'] | {'lm_head.weight': w['qwen3']['model.embed_tokens.weight']}, strict=True)
    return w, dict(
        transformer=base.load(Flux2Transformer2DModel(**public(c['transformer'])), flux2_state(w['flux2'], c['transformer'])),
        text_encoder=encoder,
        vae=base.load(AutoencoderKLFlux2(**public(c['vae'])), vae_state(w['vae'], len(c['vae']['block_out_channels']))),
        scheduler=FlowMatchEulerDiscreteScheduler(**public(c['scheduler'])))


def encode(m, prompt, length):
    """Ids and the three hidden states next to one another, as Flux2KleinPipeline._get_qwen3_prompt_embeds makes them."""
    ids = PROMPTS[prompt]
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids))])
    ids = base.pad(ids, length, PAD)
    states = m['text_encoder'](input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    return ids, torch.cat([states[k] for k in TAPS], -1)


def flux2_goldens(m, c, g, out):
    t, (rows, cols), txt = m['transformer'], g['grid'], 7
    r = torch.Generator().manual_seed(11)
    channels = c['transformer']['in_channels']
    img, text = torch.randn(1, rows * cols, channels, generator=r), torch.randn(1, txt, c['transformer']['joint_attention_dim'], generator=r)
    grids = [(2, 3), (4, 1)]
    refs = [torch.randn(1, channels, *grid, generator=r) for grid in grids]
    ids = Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, channels, rows, cols))
    ref_ids = Flux2KleinPipeline._prepare_image_ids(refs)
    packed = torch.cat([x.flatten(2).transpose(1, 2) for x in refs], 1)
    timestep, txt_ids = torch.tensor([0.875]), Flux2KleinPipeline._prepare_text_ids(text)

    def velocity(x, ids):
        return t(hidden_states=x, encoder_hidden_states=text, timestep=timestep, img_ids=ids, txt_ids=txt_ids, guidance=None,
                 return_dict=False)[0][:, :rows * cols]

    out |= {'flux2.img': img[0], 'flux2.txt': text[0], 'flux2.timestep': timestep, 'flux2.grid': torch.tensor([rows, cols]),
            'flux2.references': packed[0], 'flux2.reference_grids': torch.tensor(grids), 'flux2.velocity': velocity(img, ids)[0],
            'flux2.reference_velocity': velocity(torch.cat([img, packed], 1), torch.cat([ids, ref_ids], 1))[0]}


def vae_goldens(m, g, out):
    scale, (rows, cols) = 2 ** (len(g['vae'][0]) - 1), g['latent']
    latent = torch.randn(1, g['vae'][3], rows, cols, generator=torch.Generator().manual_seed(12))
    pixels = base.pattern(scale * cols, scale * rows).permute(2, 0, 1).float()[None] / 127.5 - 1  # the other orientation
    out |= {'vae.latent': latent[0], 'vae.image': m['vae'].decode(latent, return_dict=False)[0][0], 'vae.pixels': pixels[0],
            'vae.mean': m['vae'].encode(pixels).latent_dist.mode()[0]}


def pipeline_goldens(m, c, g, out):
    width, height, steps, seed, scale = g['width'], g['height'], g['steps'], 42, g['scale']
    pipe = Flux2KleinPipeline(tokenizer=None, is_distilled=scale == 1, **m)
    pipe.set_progress_bar_config(disable=True)
    text, nothing = (encode(m, p, 512)[1] for p in (g['prompt'], NOTHING))
    seen = {}

    def keep(pipe, step, t, values):
        seen['latents'] = values['latents']
        return values

    def run(**more):
        call = dict(prompt_embeds=text, negative_prompt_embeds=nothing, width=width, height=height, num_inference_steps=steps,
                    guidance_scale=scale, generator=torch.Generator().manual_seed(seed), callback_on_step_end=keep) | more
        clean = pipe(output_type='latent', **call).images
        return seen['latents'], m['vae'].decode(clean, return_dict=False)[0]

    latents, decoded = run()
    out |= {'pipe.sigmas': m['scheduler'].sigmas.clone(), 'pipe.latents': latents[0], 'pipe.decoded': decoded[0]}
    latents, decoded = run(num_images_per_prompt=2)
    out |= {'batch.latents': latents, 'batch.decoded': decoded}
    # Sizes that are cropped to whole tokens: the centre is kept.
    pictures = [base.pattern(70, 100), base.pattern(88, 64).flip(2)]
    images = [PIL.Image.fromarray(p.numpy()) for p in pictures]
    for n in (1, 2):
        latents, decoded = run(image=images[:n])
        out |= {f'reference.{n}.picture': pictures[n - 1].contiguous(), f'reference.{n}.latents': latents[0],
                f'reference.{n}.decoded': decoded[0]}
    return dict(prompt=g['prompt'], seed=seed, steps=steps, width=width, height=height, cfg_scale=scale)


def schedule():
    cases = []
    for config in ('klein',):
        s = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        for steps in (1, 2, 4, 10, 28, 50):
            for tokens in (16, 1024, 4096, 4300, 4301, 16384):
                s.set_timesteps(sigmas=base.np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps))
                cases.append(dict(steps=steps, image_tokens=tokens, sigmas=[float(f'{x:.9g}') for x in s.sigmas.tolist()]))
    return cases


def main(folder):
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__, transformers=transformers.__version__)
    for name, g in GEOMETRIES.items():
        c, out = configs(g), {}
        w, m = build(c, g['seed'])
        for key in ('flux2/img_in.weight', 'qwen3/model.embed_tokens.weight', 'vae/bn.running_var'):
            component, tensor = key.split('/')
            out['weight.' + key] = w[component][tensor].flatten()[:8].clone()
        ids, states = encode(m, g['prompt'], 40)
        out |= {'qwen3.ids': ids[0], 'qwen3.real': torch.tensor([len(PROMPTS[g['prompt']])]), 'qwen3.out': states[0]}
        flux2_goldens(m, c, g, out)
        vae_goldens(m, g, out)
        facts = pipeline_goldens(m, c, g, out)
        for key, t in out.items():
            assert not t.is_floating_point() or torch.isfinite(t).all(), (name, key)
        base.save(os.path.join(folder, name + '.safetensors'), out,
                  dict(config=json.dumps(c), pipeline=json.dumps(facts), seed=str(g['seed']), versions=json.dumps(versions)))
    with open(os.path.join(folder, 'flux2_schedule.json'), 'w') as f:
        json.dump(schedule(), f, separators=(',', ':'))
        f.write('\n')


if __name__ == '__main__':
    main(sys.argv[1])
